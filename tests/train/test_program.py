"""Pyro programs: sites, draws and functions, held against Pyro's own inference."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime as ort
import pyro
import pyro.distributions as dist
import pytest
import torch
from onnxscript import ir
from pyro import poutine
from pyro.infer import MCMC, NUTS, Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from edgevae.export import check_program
from edgevae.train.conversion import DEFAULT_OPSET, convert
from edgevae.train.program import Function, PyroProgram, RunName, derive
from edgevae.train.tracing import trace

from .programs import DIM, PROGRAMS, ROWS, Branches, Example, Plain, TwoMixtures, Z, functions, rows


@pytest.fixture(autouse=True)
def own_parameters() -> None:
    pyro.clear_param_store()


def program_of(example: Example) -> PyroProgram:
    return PyroProgram(example.model, example.guide, example.arguments, example.static)


class Values(Messenger):
    """Gives latent sites their values, where Pyro would draw others."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._values and not msg["is_observed"]:
            msg["value"], msg["done"] = self._values[msg["name"]], True


def noise_of(program: PyroProgram, run: RunName, count: int) -> dict[str, Tensor]:
    """The noise of a run, and values of the sites that are drawn outside."""
    noise = program.noise(run, count)
    for site in program.sites:
        if site.outside and site.role == "latent":
            noise[site.name] = torch.rand(count, *site.row_shape) + 0.1
            if site.distribution == "Dirichlet":
                noise[site.name] /= noise[site.name].sum(-1, keepdim=True)
    return noise


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_the_elbo_is_pyros_for_the_same_seed_or_the_same_values(make: Callable[[], Example]) -> None:
    example = make()
    program = program_of(example)
    run, rows = program.run_of_densities, program.rows(4)
    pyro.set_rng_seed(3)
    found = program.compute(run, rows, noise := noise_of(program, run, 4))
    elbo = (found["log_px_z"] + found["log_pz"] - found["log_qz_x"]).sum()
    model, guide = example.model, example.guide
    objective: Any = Trace_ELBO()
    if example.enumerated:
        objective = TraceEnum_ELBO(max_plate_nesting=2)
    elif program.why_other_samples:
        every = program.compute("posterior", rows, noise)
        given = Values({site.name: every[site.name] for site in program.sites if site.role == "latent"})
        model, guide = given(model), given(guide)
    pyro.set_rng_seed(3)
    expected = -objective.loss(model, guide, **example.arguments) / example.scale
    torch.testing.assert_close(float(elbo), expected, rtol=1e-5, atol=1e-4)


def session_of(function: Function) -> ort.InferenceSession:
    """A function in ONNX Runtime."""
    traced = trace(function.module, function.examples, [0] * len(function.examples))
    graph = convert(traced, DEFAULT_OPSET, function.inputs, function.outputs)
    return ort.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.slow
def test_the_functions_of_a_program_give_its_numbers_at_any_batch_size_and_in_onnx_runtime(
    make: Callable[[], Example],
) -> None:
    program = program_of(make())
    functions = derive(program)
    sessions = {name: session_of(function) for name, function in functions.items()}
    runs: list[RunName] = list(program.draws)
    for count in (1, 2, 7):
        rows = program.rows(count)
        noise = {run: noise_of(program, run, count) for run in runs}
        results = {run: program.compute(run, rows, noise[run]) for run in runs}
        for name, function in functions.items():
            run: RunName = program.run_of_densities if name == "elbo" else "prior" if name == "prior" else "posterior"
            known = results["posterior"] | rows | noise[run]
            inputs = [known[each] for each in function.inputs]
            with torch.no_grad():
                outputs = function.module(*inputs)
            onnx_outputs = sessions[name].run(
                None,
                {each.name: tensor.numpy() for each, tensor in zip(sessions[name].get_inputs(), inputs, strict=True)},
            )
            for output, tensor, array in zip(function.outputs, outputs, onnx_outputs, strict=True):
                expected, where = results[run][output], f"{name} {output}, {count} rows: " + "{}"
                torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5, msg=where.format)
                torch.testing.assert_close(torch.from_numpy(array), expected, rtol=1e-5, atol=2e-5, msg=where.format)


class Coupled(Plain):
    def make(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(DIM, 2 * Z), nn.BatchNorm1d(2 * Z, track_running_stats=False))


class ByRow(Plain):
    def model(self, x: Tensor) -> None:
        data: Any = pyro.plate("data", len(x))
        for i in data:
            z = pyro.sample(f"z_{i}", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample(f"x_{i}", self.likelihood(z), obs=x[i])

    def guide(self, x: Tensor) -> None:
        data: Any = pyro.plate("data", len(x))
        for i in data:
            pyro.sample(f"z_{i}", self.posterior(x[i]))


class WithoutData(Plain):
    def guide(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(Z))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


class OneEvent(Plain):
    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), Z), 1.0).to_event(2))
        pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        loc = self.encoder(x)[:, :Z]
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(2))


class Shared(Plain):
    def model(self, x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + shift).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.zeros(DIM)), 0.1).to_event(1))
        super().guide(x)


class BothWays(Plain):
    def likelihood(self, z: Tensor) -> Any:
        if torch.ones_like(z).sum() > 4 * Z:
            z = -z
        return super().likelihood(z)


class FixedBatch(Plain):
    def posterior(self, x: Tensor) -> Any:
        return super().posterior(x.reshape(4, -1))


class RandomOrder(Plain):
    def posterior(self, x: Tensor) -> Any:
        return super().posterior(x[:, torch.randperm(DIM)])


class Picked(Plain):
    """Observes the entries that a mask names, as many in each row."""

    @staticmethod
    def data() -> Tensor:
        return torch.cat([rows(DIM - 2).round(), torch.full((4, 2), -1.0)], dim=1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior(x))
            logits, seen = (each[x >= 0].view(x.shape[0], -1) for each in (self.decoder(z), x))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=seen)


class TwoScales(TwoMixtures):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            c = pyro.sample("c", dist.Categorical(torch.full((4,), 0.25)))
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(self.loc[c], 0.7).to_event(1))
            pyro.sample("x", self.likelihood(z), obs=x)


class Sampled(Plain):
    def guide(self, x: Tensor) -> None:
        mcmc: Any = MCMC(NUTS(self.model), num_samples=2, warmup_steps=1, disable_progbar=True)
        mcmc.run(x)


class AllRows(Plain):
    def posterior(self, x: Tensor) -> Any:
        return super().posterior(x.reshape(ROWS, DIM))


REFUSED = {
    "batch statistics": (Coupled, "of a row depends on the other rows of the batch"),
    "a loop as long as the data": (
        ByRow,
        r"line \d+ of test_program.py, `.* makes .*_3, .*_4.*a loop over the rows.*pyro.plate",
    ),
    "MCMC": (Sampled, r"line \d+ of test_program.py, `mcmc.run\(x\)`, runs MCMC, .* with SVI"),
    "a guide without x": (WithoutData, "the guide does not depend on x: its parameters are the same for all rows"),
    "a batch that is an event": (OneEvent, "has one log-density of shape \\(\\) for all rows"),
    "a latent for all rows": (Shared, "site 'shift' draws once for all rows; expected a draw for each row"),
    "a branch that is taken both ways": (BothWays, "line .* of test_program.py branches on the data, and takes both"),
    "a batch that the code fixes": (FixedBatch, "line .* of test_program.py, `return super.*reshape"),
    "a number of rows in the code": (
        AllRows,
        r"line \d+ of test_program.py.* works for the example's \d+ rows, and not",
    ),
    "entries that a mask picks": (Picked, r"line .* of test_program.py, `logits, seen = .*picks entries by a mask"),
    "a random order": (RandomOrder, "calls torch.randperm, which is no function of given noise"),
    "two scales of one sum": (TwoScales, "which are summed over together, have different scales"),
}


@pytest.mark.parametrize(("program", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_said_with_its_reason(program: type[Plain], message: str) -> None:
    example = program.example()
    report = check_program(example.model, example.guide, example.arguments)
    assert not report.passed
    (problem,) = report.problems
    assert re.search(message, problem), problem


def test_missing_entries_that_a_mask_fills_in_are_chosen_place_by_place() -> None:
    program = program_of(PROGRAMS["missing entries, filled in by a mask"]())
    encoder, noise = derive(program)["encoder"], noise_of(program, "posterior", 5)
    expected = program.compute("posterior", program.rows(5), noise)
    for name, tensor in zip(encoder.outputs, encoder.module(*program.rows(5).values()), strict=True):
        torch.testing.assert_close(tensor, expected[name])
    operators = {str(node.target) for node in encoder.module.graph.nodes}
    assert not any("index" in name for name in operators), operators


def test_an_example_that_does_not_fit_names_the_arguments() -> None:
    example = Plain.example()
    report = check_program(example.model, example.guide, {"images": rows(DIM)})
    assert "whose arguments are x" in report.problems[0]
    report = check_program(example.model, example.guide, {})
    assert "at least one, got nothing" in report.problems[0]


def test_a_report_names_sites_functions_and_what_a_reader_should_know() -> None:
    example = Branches.example()
    report = check_program(example.model, example.guide, example.arguments)
    assert report.passed
    assert [(site.name, site.role, site.distribution) for site in report.sites] == [
        ("z", "latent", "Normal"),
        ("x", "observed", "Bernoulli"),
    ]
    assert report.functions["encoder"] == (("x",), ("z.loc", "z.scale"))
    assert report.functions["prior"] == (("z.noise",), ("z",))
    assert any("takes False out of a tensor, which becomes a constant" in note for note in report.notes)
    assert "z     latent    Normal        3    loc 3, scale 3" in str(report)


def test_parameters_without_a_value_in_pyros_store_are_named_and_not_registered() -> None:
    example = functions()
    report = check_program(example.model, example.guide, example.arguments, static=example.static)
    assert report.passed
    assert any("parameter scale is not in Pyro's parameter store" in note for note in report.notes)
    assert not list(pyro.get_param_store())


def test_a_program_is_as_it_was_after_a_check() -> None:
    program = Plain()
    program.train()
    before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    state = torch.random.get_rng_state()
    check_program(program.model, program.guide, {"x": rows(DIM).round()})
    assert program.training
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in program.state_dict().items():
        assert torch.equal(tensor, before[name])
