"""The commands that run a model, for bundles of Pyro programs that are used by their sites."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import InputError, Noise, Parameters, Program, Score
from .inputs import Rows, open_arguments, open_values
from .options import BLOCK_ROWS
from .outputs import check_picture, rows_file, save_picture
from .scoring import write_scores
from .terminal import print_result, progress

Named = dict[str, NDArray[Any]]

_GRID_COLUMNS, _MAX_GRID_SHOWN = 8, 64


def encode(
    program: Program, inputs: tuple[Path, ...], seed: int | None, out: Path, batch_size: int, as_json: bool
) -> None:
    """Write the parameters of each site of the guide, and what `decode` takes: a draw of each latent, and arguments."""
    arguments, noise = open_arguments(inputs, program), Noise(seed or 0)

    def encoded(given: Named) -> Named:
        posterior = program.encode(*given.values(), seed=copy.deepcopy(noise))  # the draws of `sample` are the same
        of_decoder = {name: given[name] for name in program.reads("decoder")}
        return _flat(posterior) | posterior.sample(noise) | of_decoder

    columns = (
        {**files, **encoded(given)}
        for given, files in zip(batches(arguments, batch_size), files_of(arguments, batch_size), strict=True)
    )
    _write(program, out, count_of(arguments), columns, "encoded", as_json, seed=seed or 0)


def decode(program: Program, latents: Path, out: Path, batch_size: int, as_json: bool) -> None:
    """Write the parameters and the mean of each observed site, and computed sites."""
    values, arguments = open_values(latents, program)
    noise = Noise(0)  # of sites that the model alone draws

    def decoded(given: Named) -> Named:
        own = {name: array for name, array in given.items() if name in arguments}
        return _flat(program.decode(given, *own.values(), seed=noise))

    rows = values | arguments
    _write(program, out, count_of(rows), map(decoded, batches(rows, batch_size)), "decoded", as_json)


def reconstruct(
    program: Program, inputs: tuple[Path, ...], seed: int | None, out: Path, batch_size: int, as_json: bool
) -> None:
    """Write the mean of each observed site, for latents that the guide draws."""
    if seed is None:
        raise InputError("a program by its sites draws its latents to reconstruct; give a seed, like --seed 0")
    arguments, noise = open_arguments(inputs, program), Noise(seed)
    columns = (
        {f"{name}.mean": mean for name, mean in program.reconstruct(*given.values(), seed=noise).items()}
        for given in batches(arguments, batch_size)
    )
    _write(program, out, count_of(arguments), columns, "reconstructed", as_json, seed=seed)


def generate(program: Program, num_samples: int, seed: int, arguments: Path | None, out: Path, as_json: bool) -> None:
    """Write the parameters and the mean of each observed site, for latents that the model draws."""
    needed = program.reads("prior", "decoder")
    if needed and arguments is None:
        raise InputError(f"prior and likelihood of this program read {', '.join(needed)}; give --arguments FILE.npz")
    rows = {} if arguments is None else open_arguments([arguments], program, needed)
    if rows and count_of(rows) != num_samples:
        raise InputError(f"{arguments} has {count_of(rows)} rows, a sample each; give -n {count_of(rows)}")
    given = next(batches(rows, num_samples)) if rows else {}
    found = _flat(program.generate(*given.values(), n=num_samples, seed=seed))
    _write(program, out, num_samples, [found], "generated", as_json, seed=seed)


def score(
    program: Program, inputs: tuple[Path, ...], seed: int, rate: float | None, out: Path | None, as_json: bool
) -> None:
    """Score each row by its ELBO, and find those below the threshold."""
    arguments, noise = open_arguments(inputs, program), Noise(seed)

    def scored() -> Iterator[tuple[Named, Score]]:
        with progress(count_of(arguments), "scoring") as advance:
            for given, files in zip(batches(arguments, BLOCK_ROWS), files_of(arguments, BLOCK_ROWS), strict=True):
                found = program.score(*given.values(), seed=noise)
                yield files, found
                advance(len(found.elbo))

    write_scores(program, scored(), rate, seed, out, as_json)


def calls(program: Program, size: int) -> list[tuple[str, Callable[[], object]]]:
    """Return calls on random rows for `bench`: floats uniform in [0, 1), integers 0."""
    given: Named = {
        each.name: Noise(0).uniform(size * int(np.prod(each.shape, dtype=int))).reshape(size, *each.shape)
        if each.dtype == "float32"
        else np.zeros((size, *each.shape), np.int64)
        for each in program.arguments
    }
    latents = program.encode(*given.values()).sample(0)
    of_decoder = {name: given[name] for name in program.reads("decoder")}
    of_model = {name: given[name] for name in program.reads("prior", "decoder")}
    methods: dict[str, tuple[str, Callable[[], object]]] = {
        "encode": ("encoder", lambda: program.encode(*given.values())),
        "decode": ("decoder", lambda: program.decode(latents, *of_decoder.values())),
        "reconstruct": ("reconstruct", lambda: program.reconstruct(*given.values(), seed=0)),
        "generate": ("prior", lambda: program.generate(*of_model.values(), n=size, seed=0)),
        "elbo": ("elbo", lambda: program.elbo(*given.values(), seed=0)),
    }
    return [(name, call) for name, (graph, call) in methods.items() if graph in program.manifest.graphs]


def batches(rows: dict[str, Rows], size: int) -> Iterator[Named]:
    """Yield rows of each argument by its name, shape `(size, ...)`, the last batch smaller."""
    for parts in zip(*(each.batches(size) for each in rows.values()), strict=True):
        yield {name: values for name, (values, _) in zip(rows, parts, strict=True)}


def count_of(rows: dict[str, Rows]) -> int:
    """Return the number of rows."""
    return next(iter(rows.values())).count


def files_of(rows: dict[str, Rows], size: int) -> Iterator[Named]:
    """Yield the column `file` of each batch, where rows come from images or several files."""
    yield from next(iter(rows.values())).file_column(size)


def _flat(sites: Mapping[str, Parameters]) -> Named:
    """Name the parameters of sites, like `x.mean`; of a computed site there is the value alone."""
    return {
        site if name == "value" else f"{site}.{name}": array
        for site, parameters in sites.items()
        for name, array in parameters.items()
    }


def _write(
    program: Program, out: Path, count: int, columns: Iterable[Named], done: str, as_json: bool, **record: object
) -> None:
    """Write columns of rows, or draw the only mean among them, and say what was done."""
    suffix, parts = out.suffix.lower(), iter(columns)
    first = next(parts)
    means = [name for name in first if name.endswith(".mean")]
    if suffix == ".png":
        written, names = _draw(out, first, parts, means), means
    else:
        shown = means if suffix == ".npy" else list(first)
        if suffix == ".npy" and len(means) != 1:
            raise InputError(f"a .npy file holds one array, and there are {', '.join(first)}; write a .npz file")
        with rows_file(out, count) as append, progress(count, done) as advance:
            for part in itertools.chain([first], parts):
                append(**{name: part[name] for name in shown})
                advance(len(part[shown[0]]))
        written, names = count, shown
    rows = f"{count} rows" if written == count else f"the first {written} of {count} rows"
    text = f"{out}: {', '.join(names)}; {rows}, {done} on {program.provider}"
    print_result(as_json, text, out=out, rows=count, written=written, arrays=names, **record, provider=program.provider)


def _draw(out: Path, first: Named, parts: Iterator[Named], means: list[str]) -> int:
    """Draw the first rows of the only mean; return how many."""
    if len(means) != 1:
        raise InputError(f"a picture shows one mean, and there are {', '.join(means) or 'none'}; write a .npz file")
    shape = first[means[0]].shape[1:]
    check_picture(shape)
    found = [first[means[0]]]
    while sum(map(len, found)) < _MAX_GRID_SHOWN and (part := next(parts, None)) is not None:
        found.append(part[means[0]])
    shown = np.concatenate(found)[:_MAX_GRID_SHOWN]
    save_picture(out, shown.reshape(len(shown), -1), shape, _GRID_COLUMNS)
    return len(shown)
