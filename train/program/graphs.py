"""The functions of a bundle, derived from a Pyro program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from ..errors import ProgramError
from ..tracing import trace
from .program import TERMS, TRACE_ROWS, PyroProgram, RunName
from .subgraph import SIZE, as_functions, subgraph


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of arrays, the batch first.

    Args:
        module: Computes the outputs from the inputs, in order.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        examples: Inputs to trace with.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: tuple[Tensor, ...]

    @property
    def read(self) -> set[str]:
        """Names of the inputs whose values matter, not only their number of rows."""
        nodes = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        return {
            name
            for name, node in zip(self.inputs, nodes, strict=True)
            if any(user.target != SIZE for user in node.users)
        }


class _Traceable(nn.Module):
    """A run of a program, with arguments and results by position."""

    def __init__(self, program: PyroProgram, run: RunName, arguments: Iterable[str], noise: Iterable[str]) -> None:
        super().__init__()
        self.program, self.run = program, run
        self.arguments, self.noise = tuple(arguments), tuple(noise)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return all that the run gives."""
        count = len(self.arguments)
        arguments = dict(zip(self.arguments, inputs[:count], strict=True))
        results = self.program.compute(self.run, arguments, dict(zip(self.noise, inputs[count:], strict=True)))
        return tuple(results.values())


class TracedRun:
    """A run of a program as a graph: its nodes by name, and values of its inputs.

    Args:
        program: The program.
        run: Which of its runs.
    """

    def __init__(self, program: PyroProgram, run: RunName) -> None:
        arguments, noise = program.rows(TRACE_ROWS), program.noise(run, TRACE_ROWS)
        results = program.compute(run, arguments, noise)
        noise |= {site.name: results[site.name] for site in program.sites if site.is_input and site.name in results}
        self.values = arguments | results | noise
        inputs = (*arguments.values(), *noise.values())
        with torch.no_grad(), program.evaluating():
            traced = trace(_Traceable(program, run, arguments, noise), inputs, [0] * len(inputs))
        self.graph = as_functions(traced)
        nodes = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        self.inputs: dict[str, fx.Node] = dict(zip((*arguments, *noise), nodes, strict=True))
        (outputs,) = next(node for node in self.graph.graph.nodes if node.op == "output").args
        self.outputs: dict[str, fx.Node] = dict(zip(results, outputs, strict=True))

    def function(self, given: Iterable[str], wanted: Iterable[str]) -> Function:
        """Return the function that computes some results from others, and from arguments and noise."""
        nodes = {name: self.outputs[name] for name in given if name not in self.inputs} | self.inputs
        wanted = tuple(wanted)
        module, inputs = subgraph(self.graph, nodes, {name: self.outputs[name] for name in wanted})
        return Function(module, inputs, wanted, tuple(self.values[name] for name in inputs))


def derive(program: PyroProgram) -> dict[str, Function]:
    """Return the functions of a program by name.

    | function | takes | gives |
    | --- | --- | --- |
    | `encoder` | arguments, noise of sites on which others depend | parameters of the guide's sites |
    | `sample` | those, and all noise | values of the guide's sites |
    | `decoder` | values, arguments that the likelihood reads | parameters and means of observed sites; computed sites |
    | `observation` | parameters of observed sites, noise | draws of observed sites |
    | `reconstruct` | arguments, noise | means of observed sites |
    | `elbo` | arguments, noise, and what encoder and decoder gave | log p(x|z), log p(z), log q(z|x) of each row |
    | `prior` | noise | values of the latents, from the model alone |

    One that would give nothing is left out.

    Raises:
        ProgramError: The guide does not depend on the arguments.
        TraceError: The program cannot be traced for any batch size.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return _derive(program)


def _derive(program: PyroProgram) -> dict[str, Function]:
    posterior = TracedRun(program, "posterior")
    densities = posterior if program.run_of_densities == "posterior" else TracedRun(program, "enumerated")
    latents = [site.name for site in program.sites if site.role == "latent"]
    drawn = [site.name for site in program.sites if site.role == "latent" and not site.is_input]
    of_prior = [f"{site.name}.{key}" for site in program.sites if site.is_input for key in site.parameters]
    observed = [site.name for site in program.sites if site.role == "observed"]
    of_guide = [f"{site.name}.{key}" for site in program.sites if site.role == "latent" for key in site.parameters]
    of_model = [f"{site.name}.{key}" for site in program.sites if site.role == "observed" for key in site.parameters]
    means = [name for site in observed if (name := f"{site}.mean") in posterior.outputs]
    draws = [name for site in observed if (name := f"{site}.draw") in posterior.outputs]
    computed = [site.name for site in program.sites if site.role == "deterministic"]
    cuts = [name for name in (*of_guide, *of_model) if name in densities.outputs]
    functions = {
        "encoder": posterior.function([], of_guide),
        "sample": posterior.function(of_guide, drawn),
        "elbo": densities.function(cuts, TERMS),
    }
    if not program.needs_all_values:
        prior = TracedRun(program, "prior")
        functions |= {
            "decoder": posterior.function(latents, [*of_model, *means, *computed]),
            "observation": posterior.function(of_model, draws),
            "reconstruct": posterior.function([], means),
            "prior": prior.function([], [name for name in (*drawn, *of_prior) if name in prior.outputs]),
        }
    check_amortized(program, functions["encoder"])
    return {name: function for name, function in functions.items() if function.outputs}


def check_amortized(program: PyroProgram, encoder: Function) -> None:
    """Check that the guide depends on the arguments.

    Args:
        program: The program.
        encoder: The function of it that gives the parameters of the guide's sites.

    Raises:
        ProgramError: It does not.
    """
    if not encoder.read & set(program.example):
        raise ProgramError(
            f"the guide does not depend on {', '.join(program.example)}: its parameters are the same for all rows. "
            "Give it a network that takes the data; autoguides that are not amortized fit the data of one call only"
        )
