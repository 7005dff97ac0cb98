"""A Pyro program of a user's own, as a training sees it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from ..config import ProgramConfig, TrainingConfig
from ..conversion import DEFAULT_OPSET, convert
from ..device import forked_rng
from ..elbo import RowTerms, evaluating
from ..errors import ConfigError, ProgramError, TraceError, TrainError
from ..objective import DeviceELBO, ScaleLatent
from ..tracing import line_of_error, trace
from ..trainable import Trainable
from .check import run_program
from .graphs import derive
from .loading import load_program
from .program import PyroProgram, Site, Tensors, bound, modules_used, unwrapped

_DATA, _LABELS = "x", "y"


def takes_labels(place: str, model: Callable[..., Any], conditional: bool) -> bool:
    """Return whether a program gets labels: it must have them, or may have them and `conditional` asks for them.

    Args:
        place: The program's place, for errors.
        model: Its model.
        conditional: Whether labels were asked for.

    Raises:
        ConfigError: The model takes no `x`, or needs something else, or no `y` that was asked for.
    """
    parameters = inspect.signature(model).parameters
    wanted = f"the model of {place} must take the observations as x, and labels as y"
    remedy = "write a function with these arguments that calls it"
    if _DATA not in parameters:
        raise ConfigError(f"{wanted}; its arguments are {', '.join(parameters) or 'none'}: {remedy}")
    required = {
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    if others := sorted(required - {_DATA, _LABELS}):
        raise ConfigError(f"{wanted}, and needs {', '.join(others)} too: {remedy}")
    if conditional and _LABELS not in parameters:
        raise ConfigError(f"{wanted} to see them; it has no argument y, so leave --conditional out")
    return conditional or _LABELS in required


class ProgramModel(Trainable):
    """A Pyro program that is trained.

    A step is Pyro's: its objective is `Trace_ELBO`, or `TraceEnum_ELBO` where discrete sites are summed over, and the
    parameters that change are those that the program registers with Pyro. Evaluations run the program on given noise
    (`PyroProgram`), which gives the ELBO of each row.

    Args:
        config: The program's place, and the shape of its arguments.
        x: Some observations, shape `(rows, *data_shape)`, to see what the program consists of.
        y: Their labels, shape `(rows,)`, where it gets labels.

    Raises:
        ConfigError: There is no such program, or it registers no parameters.
        ProgramError: The program cannot be run with given noise, or its rows depend on each other.

    Attributes:
        name: The name of its class or function.
        functions: Its model and its guide.
    """

    config: ProgramConfig

    def __init__(self, config: ProgramConfig, x: Tensor, y: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        with pyro.get_param_store().scope(self.param_state):
            loaded = load_program(config.program)
            self.name, self.functions = loaded.name, (loaded.model, loaded.guide)
            self.owners = nn.ModuleList(modules_used(*self.functions))
            program = run_program(*self.functions, self._arguments(x, y))
            self.__dict__["_program"] = program  # no submodule: it has the same weights, and copies of others
            self._register(x, y)
        self._adopt_parameters()
        with self.parameters_in_use():  # on the CPU, where the example is
            self._unit_site, self._mean_name = self._find_unit_site(), self._find_mean()

    def _register(self, x: Tensor, y: Tensor | None) -> None:
        """Let the program register its parameters with Pyro, as its first step does."""
        loss = self.loss_of(TrainingConfig(), ScaleLatent(1.0, self.is_latent), lambda rows: rows.mean(0))
        with evaluating(self), torch.enable_grad(), pyro.validation_enabled(False):
            loss(x, y)

    def _adopt_parameters(self) -> None:
        """Make parameters of plain functions, which are in Pyro's store alone, parameters of this module."""
        params = self.param_state["params"]
        if not params:
            raise ConfigError(
                f"{self.config.description} registers no parameters with Pyro, so there is nothing to train; call "
                "pyro.module(name, network) in the model and in the guide, or use PyroModule"
            )
        self.stored, self._registered = nn.Module(), frozenset(params)
        own = {id(parameter) for parameter in self.owners.parameters()}
        for name, tensor in params.items():
            if id(tensor) not in own:
                parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach())
                params[name] = parameter
                self.stored.register_parameter(name.replace(".", "/"), parameter)

    # What it is

    @functools.cached_property
    def _latents(self) -> list[Site]:
        return [each for each in self._program.sites if each.role in ("latent", "from the prior", "summed out")]

    @property
    def _program(self) -> PyroProgram:
        program: PyroProgram = self.__dict__["_program"]
        return program

    @functools.cached_property
    def _summed_out(self) -> frozenset[str]:
        return frozenset(site.name for site in self._program.sites if site.role == "summed out")

    @property
    def _enumerates(self) -> bool:
        return bool(self._summed_out) or any(site.enumerated for site in self._program.sites)

    @property
    def summary(self) -> str:
        """The program's name, its sites, its objective, and which parameters are not trained."""
        sites = [f"{site.role} {site.name} ({site.distribution or 'computed'})" for site in self._program.sites]
        objective = "TraceEnum_ELBO" if self._enumerates else "Trace_ELBO"
        fitted = {id(parameter) for parameter in self.fitted()}
        kept = sum(id(parameter) not in fitted for parameter in self.parameters())
        said = f"; {kept} tensors of weights are not registered with Pyro and stay as they are" if kept else ""
        return f"{self.config.description}: {', '.join(sites)}; {objective}{said}"

    @property
    def unit_interval(self) -> bool:
        """Whether the data must lie in [0, 1]: a site that observes as many values has such a distribution."""
        return any(site.unit_interval for site in self._observed_data)

    @property
    def _observed_data(self) -> list[Site]:
        observed = [site for site in self._program.sites if site.role == "observed"]
        return [site for site in observed if torch.Size(site.row_shape).numel() == self.config.data_dim]

    def _find_unit_site(self) -> Site | None:
        """Return the latent, where it is one normal site in guide and model."""
        if len(self._latents) != 1:
            return None
        (site,) = self._latents
        if site.role != "latent" or site.distribution != "Normal" or site.auxiliary or site.enumerated:
            return None
        with evaluating(self), forked_rng(torch.device("cpu")), pyro.validation_enabled(False):
            trace = poutine.trace(self._called(0)).get_trace(**self._program.rows(2))
        prior = trace.nodes[site.name]["fn"]
        return site if type(unwrapped(prior)).__name__ == "Normal" else None

    @property
    def num_units(self) -> int:
        """Dimensions of z, where it is one normal site in guide and model; else 0."""
        return 0 if self._unit_site is None else torch.Size(self._unit_site.row_shape).numel()

    def _find_mean(self) -> str:
        """Return the name of the mean of a site that observes as many values as the data have; empty without one."""
        if self._program.needs_all_values:
            return ""
        with forked_rng(torch.device("cpu")):
            found = self._program.compute("posterior", self._program.rows(2), self._program.noise("posterior", 2))
        names = [f"{site.name}.mean" for site in self._observed_data]
        return next((name for name in names if name in found), "")

    @property
    def has_means(self) -> bool:
        """Whether an observed site has a mean of the data's size."""
        return bool(self._mean_name)

    @property
    def values_a_row(self) -> int:
        """The size of a row."""
        return self.config.data_dim

    def fitted(self) -> Sequence[Tensor]:
        """Return the parameters that the program registers with Pyro."""
        params = self.param_state["params"].values()
        return list({id(parameter): parameter for parameter in params}.values())  # one may have several names

    def is_latent(self, site: str) -> bool:
        """Return whether a site is latent, in the model or in the guide."""
        return any(each.name == site for each in self._latents)

    # Training

    def _arguments(self, x: Tensor, y: Tensor | None) -> Tensors:
        return {_DATA: x} if y is None else {_DATA: x, _LABELS: y}

    def _called(self, place: int) -> Callable[..., Any]:
        """Return model or guide as a function of `x` and `y`."""
        model, function = self.functions[0], self.functions[place]

        def call(x: Tensor, y: Tensor | None = None) -> Any:
            args, kwargs = bound(model, self._arguments(x, y))
            return function(*args, **kwargs)

        return call

    def loss_of(
        self, config: TrainingConfig, latent: ScaleLatent, batch_mean: Callable[[Tensor], Tensor]
    ) -> Callable[..., Tensor]:
        """Return the loss that the program asks for; see `Trainable`."""
        for option, given in (
            ("jit", config.jit),
            ("free_bits", config.free_bits > 0),
            ("precision bf16", config.precision != "fp32"),
        ):
            if given:
                raise ConfigError(f"{option} goes with the VAE's own networks, not with a program; leave it out")
        model, guide = self._called(0), self._called(1)
        if self._enumerates:
            # Sites of the model alone are summed over, as evaluations and exports do.
            in_parallel: Any = self._parallel
            model = poutine.infer_config(model, in_parallel)
            elbo: Any = TraceEnum_ELBO(config.num_particles, max_plate_nesting=self._program.plate_nesting)
        else:
            elbo = DeviceELBO(config.num_particles, batch_mean=batch_mean)
        differentiable_loss = functools.partial(elbo.differentiable_loss, latent(model), latent(guide))

        def loss(x: Tensor, y: Tensor | None = None) -> Tensor:
            with self._errors():
                return torch.as_tensor(differentiable_loss(*self._arguments(x, y).values()))

        return loss

    def _parallel(self, site: Any) -> dict[str, Any]:
        return {"enumerate": "parallel", **site["infer"]} if site["name"] in self._summed_out else {}

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Say which line of the program failed: it raises anything."""
        try:
            yield
        except TrainError:
            raise
        except Exception as error:
            said = " ".join(str(error).partition(", but found invalid values")[0].split())  # tensors follow
            if "within the support" in said:
                said += ". Bring the data there (--binarize gives 0 and 1), or make the distribution with "
                said += "validate_args=False"
            if "poutine.scale" in said and self._summed_out:
                names = ", ".join(sorted(self._summed_out))
                raise ConfigError(
                    f"beta weighs latent sites, and {names} is summed over together with what is observed, which "
                    "has no such weight; leave --beta and --beta-warmup out"
                ) from error
            where = line_of_error(error) or self.config.description
            raise ProgramError(f"{where} fails: {type(error).__name__}: {said}") from error

    def check_rows(self, x: Tensor, y: Tensor | None, loss: Callable[..., Tensor]) -> None:
        """Compute the loss of a few rows, with all checks of Pyro.

        Raises:
            ConfigError: The program has no such objective.
            ProgramError: The program fails, or a value is outside of its distribution's support.
        """
        with (
            pyro.get_param_store().scope(self.param_state),
            evaluating(self),
            torch.enable_grad(),  # without which Pyro's ELBO says nothing
            forked_rng(x.device),
            pyro.validation_enabled(True),
        ):
            loss(x, y)

    def check_exportable(self) -> None:
        """Derive all functions of the program, and write them in ONNX where the export's packages are installed.

        Raises:
            TraceError: A function cannot be exported; the message names the line of the user's program.
        """
        try:
            loaded = load_program(self.config.program)  # on the CPU, whatever device this one is trained on
            with pyro.get_param_store().scope():
                functions = derive(run_program(loaded.model, loaded.guide, self._program.example))
            if importlib.util.find_spec("onnxscript") is None:
                return
            for name in ("reconstruct" if "reconstruct" in functions else "encoder", "elbo"):
                function = functions[name]
                convert(trace(function.module, function.examples, [0] * len(function.examples)), DEFAULT_OPSET)
        except (ProgramError, TraceError) as error:
            raise TraceError(
                f"the program could be trained, but not exported: {error}. To train it all the same, give "
                "--no-export-check"
            ) from error

    # Evaluation

    @contextlib.contextmanager
    def parameters_in_use(self) -> Iterator[None]:
        """Let Pyro's parameter store have this model's parameters, in the body."""
        with pyro.get_param_store().scope(self.param_state):
            yield

    @contextlib.contextmanager
    def _on(self, device: torch.device) -> Iterator[PyroProgram]:
        """Yield the program with the present parameters; it makes its noise on a device."""
        with self.parameters_in_use(), device if device.type == "cuda" else contextlib.nullcontext():
            if later := sorted(pyro.get_param_store().keys() - self._registered):
                raise ConfigError(
                    f"{self.config.description} registers {', '.join(later)} only after the first step; do so at once"
                )
            self._program.renew_parameters()
            yield self._program

    def _terms(self, program: PyroProgram, arguments: Tensors) -> Tensors:
        run = program.run_of_densities
        return program.compute(run, arguments, program.noise(run, len(arguments[_DATA])))

    def terms(self, x: Tensor, y: Tensor | None) -> RowTerms:
        """Return the terms of the ELBO for one draw; see `Trainable`."""
        arguments, site = self._arguments(x, y), self._unit_site
        with self._on(x.device) as program:
            found = self._terms(program, arguments)
            kl = z_loc = x.new_zeros((len(x), 0), dtype=torch.float64)
            if site is not None:
                prior = program.compute("prior", arguments, program.noise("prior", len(x)))
                q, p = (self._normal(site, tensors) for tensors in (found, prior))
                kl, z_loc = torch.distributions.kl_divergence(q, p), q.loc
        elbo = found["log_px_z"] + found["log_pz"] - found["log_qz_x"]
        return RowTerms(elbo, found["log_px_z"], kl, z_loc)

    @staticmethod
    def _normal(site: Site, found: Tensors) -> torch.distributions.Normal:
        loc, scale = (found[f"{site.name}.{name}"].flatten(1).double() for name in ("loc", "scale"))
        return torch.distributions.Normal(loc, scale, validate_args=False)

    def weigher(self, x: Tensor, y: Tensor | None) -> Callable[[int], Tensor]:
        """Return what weighs draws; see `Trainable`."""
        arguments = self._arguments(x, y)

        def weigh(count: int) -> Tensor:
            repeated = {name: rows.repeat(count, *[1] * (rows.ndim - 1)) for name, rows in arguments.items()}
            with self._on(x.device) as program:
                found = self._terms(program, repeated)
            return (found["log_px_z"] + found["log_pz"] - found["log_qz_x"]).unflatten(0, (count, len(x)))

        return weigh

    def _posterior(self, x: Tensor, y: Tensor | None) -> Tensors:
        with self._on(x.device) as program:
            return program.compute("posterior", self._arguments(x, y), program.noise("posterior", len(x)))

    def encode(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the parameters of the guide's normal site; see `Trainable`."""
        if self._unit_site is None:
            raise ConfigError(f"{self.config.description} has other latents than one normal site")
        found, name = self._posterior(x, y), self._unit_site.name
        return found[f"{name}.loc"].flatten(1), found[f"{name}.scale"].flatten(1)

    def reconstruct_img(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean of the site that observes the data; see `Trainable`."""
        if not self.has_means:
            raise ConfigError(f"no observed site of {self.config.description} has a mean of the data's size")
        return self._posterior(x, y)[self._mean_name].flatten(1)
