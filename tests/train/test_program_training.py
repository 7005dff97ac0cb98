"""Pyro programs of a user's own, trained: `fit` with `program_for`, and `--program`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from click.testing import CliRunner
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

from edgevae.train import (
    ConfigError,
    Dataset,
    LabelError,
    Processes,
    ProgramConfig,
    ProgramError,
    ProgramModel,
    RunError,
    TraceError,
    Trainer,
    TrainingConfig,
    elbo_of_each,
    evaluate,
    fit,
    importance_weighted_bound,
    load_run,
    make_model,
    program_for,
)
from edgevae.train.cli import main
from edgevae.train.fitting import example_rows
from edgevae.train.program import load_program
from edgevae.train.trainer import Step

FILE = Path(__file__).with_name("own_programs.py")
CPU = torch.device("cpu")
PROGRAMS = ("OneLatent", "TwoLatents", "SummedClass", "MixturePrior", "HiddenShift", "Labelled", "Layers")
ALL = (*PROGRAMS, "plain_functions")
ENUMERATED = ("SummedClass", "MixturePrior", "HiddenShift")


@pytest.fixture(scope="module")
def some(digits: Dataset) -> Dataset:
    """The first digits, with labels."""
    return dataclasses.replace(
        digits,
        train=digits.train[:400],
        test=digits.test[:60],
        train_labels=torch.arange(400) % 10,
        test_labels=torch.arange(60) % 10,
        validation=digits.train[400:460],
        validation_labels=torch.arange(60) % 10,
    )


def place(name: str) -> str:
    return f"{FILE}:{name}"


def trainer_of(some: Dataset, name: str, **options: Any) -> Trainer:
    training = TrainingConfig(**{"batch_size": 100, "learning_rate": 1e-2, **options})
    config = program_for(some, training, place(name))
    return Trainer(config, training, CPU, example=example_rows(some, config))


def arguments_of(some: Dataset, trainer: Trainer, rows: int = 20) -> tuple[Tensor, ...]:
    x, y = some.train[:rows], some.train_labels
    return (x, y[:rows]) if trainer.model.config.num_classes and y is not None else (x,)


def program_of(trainer: Trainer) -> ProgramModel:
    assert isinstance(trainer.model, ProgramModel)
    return trainer.model


def loss_of(program: ProgramModel, beta: float = 1.0) -> Callable[..., Tensor]:
    return Step(program, TrainingConfig(beta=beta)).loss


def labels_of(trainer: Trainer, labels: Tensor | None) -> Tensor | None:
    return labels if trainer.model.config.num_classes else None


def pyros_elbo(name: str, model: Any) -> tuple[Any, Any]:
    """Return the model and the ELBO as a user writes them for SVI."""
    if name in ENUMERATED:
        return config_enumerate(model) if name != "SummedClass" else model, TraceEnum_ELBO(max_plate_nesting=1)
    return model, Trace_ELBO()


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_of_a_step_is_that_of_pyros_objective(some: Dataset, name: str) -> None:
    trainer = trainer_of(some, name)
    program, arguments = program_of(trainer), arguments_of(some, trainer)
    model, guide = program.functions
    with pyro.get_param_store().scope(program.param_state):
        torch.manual_seed(5)
        loss = loss_of(program)(*arguments)
        loss.backward()
        found = [parameter.grad for parameter in program.fitted()]
        for parameter in program.fitted():
            parameter.grad = None
        torch.manual_seed(5)
        model, elbo = pyros_elbo(name, model)
        expected = elbo.loss_and_grads(model, guide, *arguments)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert len(found) == len({id(each) for each in program.fitted()}) > 1
    for gradient, parameter in zip(found, program.fitted(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["OneLatent", "plain_functions", "SummedClass"])
def test_a_training_ends_where_a_hand_written_loop_of_svi_ends(some: Dataset, name: str) -> None:
    trainer = trainer_of(some, name)
    for _ in range(8):
        trainer.fit_epoch(some.train)
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(1)
        program = load_program(place(name))
        model, elbo = pyros_elbo(name, program.model)
        optim: Any = pyro.optim  # which has no types
        svi = SVI(model, program.guide, optim.Adam({"lr": 1e-2}), elbo)
        for _ in range(8):
            for batch in some.train[torch.randperm(400)].split(100):
                svi.step(batch)
        expected = -sum(float(svi.evaluate_loss(some.test)) for _ in range(5)) / 5 / len(some.test)
    found = elbo_of_each(trainer.model, some.test, 5).mean()
    before = elbo_of_each(trainer_of(some, name).model, some.test).mean()
    assert found > before + 5
    assert float(found) == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize("name", ALL)
def test_the_elbos_of_rows_add_up_to_pyros_for_the_same_seed(some: Dataset, name: str) -> None:
    trainer = trainer_of(some, name)
    program, arguments = program_of(trainer), arguments_of(some, trainer, 60)
    model, elbo = pyros_elbo(name, program.functions[0])
    elbos = elbo_of_each(program, arguments[0], 1, labels_of(trainer, arguments[-1]))
    with pyro.get_param_store().scope(program.param_state), torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(0)  # the seed of evaluations
        expected = -elbo.loss(model, program.functions[1], *arguments)
    assert float(elbos.sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["OneLatent", "SummedClass", "plain_functions"])
def test_a_resumed_training_ends_with_the_same_weights(some: Dataset, name: str) -> None:
    whole, first, second = (trainer_of(some, name) for _ in range(3))
    for _ in range(2):
        whole.fit_epoch(some.train)
    steps = iter(range(6))
    first.fit_epoch(some.train, should_stop=lambda: next(steps) == 2)
    elbo_of_each(first.model, some.test)
    second.restore(first.checkpoint())
    for _ in range(2):
        second.fit_epoch(some.train)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[key]), key


def test_two_trainings_share_no_weights(some: Dataset) -> None:
    for name in ("plain_functions", "functions_of_networks", "OneLatent"):
        first, second = trainer_of(some, name), trainer_of(some, name)
        before = {key: tensor.clone() for key, tensor in second.model.state_dict().items()}
        first.fit_epoch(some.train)
        assert all(torch.equal(tensor, before[key]) for key, tensor in second.model.state_dict().items())
        assert not torch.equal(next(iter(first.model.state_dict().values())), next(iter(before.values())))
    assert not pyro.get_param_store().keys()


def test_networks_that_functions_refer_to_are_evaluated_without_dropout(some: Dataset) -> None:
    trainer = trainer_of(some, "functions_of_networks")
    found = [elbo_of_each(trainer.model, some.test) for _ in range(2)]
    trainer.model.eval()
    torch.manual_seed(0)
    z_loc = trainer.model.encode(some.test, None)[0]
    torch.manual_seed(1)
    assert torch.equal(z_loc, trainer.model.encode(some.test, None)[0])
    assert torch.equal(*found)
    assert set(trainer.model.state_dict()) == {
        f"owners.{place}{layer}.{kind}" for place, layer in ((0, ""), (1, ".0")) for kind in ("weight", "bias")
    }


def test_units_are_known_where_the_latent_is_one_normal_site(some: Dataset) -> None:
    trainer = trainer_of(some, "OneLatent")
    for _ in range(30):
        trainer.fit_epoch(some.train)
    found = evaluate(trainer.model, some.test, num_particles=20, iw_particles=100)
    assert len(found.kl_per_dim_nats) == 3
    assert sum(found.kl_per_dim_nats) == pytest.approx(found.kl_nats, abs=0.3)
    assert 0 < found.active_units <= 3
    assert found.iw_bound_nats is not None
    assert found.iw_bound_nats > found.elbo_nats
    for name in ("TwoLatents", "MixturePrior", "SummedClass"):
        assert evaluate(trainer_of(some, name).model, some.test).kl_per_dim_nats == ()


def test_the_importance_weighted_bound_is_pyros(some: Dataset) -> None:
    trainer = trainer_of(some, "OneLatent")
    for _ in range(10):  # weights of an untrained guide vary much
        trainer.fit_epoch(some.train)
    program, x = program_of(trainer), some.test[:3]
    found = importance_weighted_bound(program, x, num_particles=100).sum()
    elbo: Any = RenyiELBO(alpha=0, num_particles=100)
    with pyro.get_param_store().scope(program.param_state), torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        expected = -sum(float(elbo.loss(*program.functions, row[None])) for row in x)
    assert float(found) == pytest.approx(expected, abs=0.6)


def test_beta_weighs_the_latent_sites_of_a_program(some: Dataset) -> None:
    trainer = trainer_of(some, "TwoLatents")
    program, (x,) = program_of(trainer), arguments_of(some, trainer)
    with pyro.get_param_store().scope(program.param_state), torch.no_grad():
        torch.manual_seed(2)
        loss = loss_of(program, 4.0)(x)
        torch.manual_seed(2)
        guide = poutine.trace(program.functions[1]).get_trace(x)
        model = poutine.trace(poutine.replay(program.functions[0], guide)).get_trace(x)
        guide.compute_log_prob()
        model.compute_log_prob()
    kl = sum(guide.nodes[site]["log_prob_sum"] - model.nodes[site]["log_prob_sum"] for site in ("z1", "z2"))
    expected = 4.0 * kl - model.nodes["pixels"]["log_prob_sum"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_a_run_of_a_program_reads_back_with_its_weights_and_report(some: Dataset, tmp_path: Path) -> None:
    training = TrainingConfig(
        epochs=4, batch_size=100, patience=3, schedule="plateau", clip_norm=50.0, beta_warmup=2, lr_warmup=1
    )
    for name in ("OneLatent", "plain_functions", "Labelled"):
        config = program_for(some, training, place(name))
        out = tmp_path / name
        run = fit(some, out, config, training, export_check=False, iw_particles=5, report=name == "OneLatent")
        again = load_run(out)
        assert again.config == run.config
        assert again.config.model == ProgramConfig(place(name), (1, 8, 8), 10 if name == "Labelled" else 0)
        labels = None if again.labels is None else again.labels
        elbo = elbo_of_each(again.model, again.samples, 10, labels)
        torch.testing.assert_close(elbo.float(), again.test_elbos, rtol=1e-5, atol=1e-4)
        assert (again.labels is not None) == (name == "Labelled")
        assert [line.beta for line in run.metrics] == [0.5, 1.0, 1.0, 1.0]
    page = (tmp_path / "OneLatent" / "report.html").read_text()
    assert "OneLatent of own_programs.py: latent z (Normal), observed pixels (Bernoulli); Trace_ELBO" in page
    for title in ("Loss", "Reconstructions", "Latent space", "KL by dimension", "Active units"):
        assert title in page
    assert not (tmp_path / "OneLatent" / "samples.png").exists()
    with pytest.raises(RunError, match=r"holds OneLatent of own_programs.py.*; take model in place of vae"):
        load_run(tmp_path / "OneLatent").vae  # noqa: B018 - the property raises


def test_the_report_of_two_latents_has_no_map_of_them(some: Dataset, tmp_path: Path) -> None:
    training = TrainingConfig(epochs=1, batch_size=100)
    fit(some, tmp_path / "run", program_for(some, training, place("TwoLatents")), training, export_check=False)
    found = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert found == {"loss.png", "reconstructions.png"}


def refused(*options: object) -> str:
    result = CliRunner().invoke(main, ["--dataset", "digits", *map(str, options)])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--z-dim", "5"], "--z-dim describes the VAE of edgevae, and --program trains"),
        (["--architecture", "conv"], "--architecture describes the VAE"),
        (["--architecture-option", "depth=3"], "--architecture-option describes the VAE"),
        (["--likelihood", "normal"], "--likelihood describes the VAE"),
        (["--free-bits", "0.1"], "free_bits goes with the VAE's own networks, not with a program"),
        (["--jit"], "jit goes with the VAE's own networks"),
        (["--conditional"], "it has no argument y, so leave --conditional out"),
        (["--patience", "3"], "patience 3 needs a validation ELBO"),
    ],
)
def test_options_that_a_program_does_not_take_are_refused(tmp_path: Path, option: list[str], message: str) -> None:
    assert message in refused("--program", place("OneLatent"), "--out", tmp_path / "run", *option)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Missing", ConfigError, r"there is no Missing in .*own_programs\.py; it has "),
        ("OtherArguments", ConfigError, r"must take the observations as x, and labels as y; its arguments are images"),
        ("MoreArguments", ConfigError, r"and needs mask too: write a function with these arguments that calls it"),
        ("Unregistered", ConfigError, r"registers no parameters with Pyro.*call pyro\.module\(name, network\)"),
        (
            "Grey",
            ProgramError,
            r"Grey of own_programs\.py fails: ValueError: .*within the support [^\n]*\. Bring the data there[^\n]*$",
        ),
        ("WrongShape", ProgramError, r"own_programs\.py.* fails on x: RuntimeError: mat1 and mat2"),
        ("LateParameter", ConfigError, r"registers late only after the first step; do so at once"),
        ("NotInONNX", TraceError, r"trained, but not exported: .*own_programs\.py.*bessel_j0.*--no-export-check"),
    ],
)
def test_what_stands_in_the_way_is_an_error_and_nothing_is_written(
    some: Dataset, tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    training, check = TrainingConfig(epochs=1, batch_size=100), error is TraceError
    with pytest.raises(error, match=f"(?s){message}"):
        fit(some, tmp_path / "run", program_for(some, training, place(name)), training, export_check=check)
    assert not (tmp_path / "run").exists()


def test_grey_values_are_binarized_for_a_program_that_observes_0_and_1(some: Dataset) -> None:
    trainer_of(some, "Grey", binarize="stochastic").fit_epoch(some.train)


def test_beta_is_refused_where_what_is_observed_is_summed_over_with_a_latent(some: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"c is summed over together with what is observed.*leave --beta"):
        trainer_of(some, "HiddenShift", beta=2.0).fit_epoch(some.train)


def test_labels_are_needed_where_the_program_takes_them(some: Dataset) -> None:
    with pytest.raises(LabelError, match=r"Labelled takes labels, and digits was loaded without any"):
        program_for(some.without_labels(), TrainingConfig(), place("Labelled"))


def test_a_program_needs_rows_to_run_with(some: Dataset) -> None:
    with pytest.raises(ConfigError, match="which needs rows to run with: give an example"):
        make_model(program_for(some, TrainingConfig(), place("OneLatent")))


def test_several_processes_refuse_a_program(some: Dataset) -> None:
    two = Processes()
    two.world_size = 2
    with pytest.raises(ConfigError, match="2 processes fit a VAE of edgevae together, not a Pyro program"):
        Trainer(program_for(some, TrainingConfig(), place("OneLatent")), TrainingConfig(), CPU, two)


def test_the_command_line_trains_a_program_and_resumes_it(tmp_path: Path) -> None:
    base = ["--dataset", "digits", "--no-report", "--no-export-check", "--batch-size", "300"]
    command = [*base, "--out", str(tmp_path / "run"), "--program", place("Labelled"), "--epochs", "1"]
    result = CliRunner().invoke(main, [*command, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "model     Labelled of own_programs.py, 10 classes: latent z (Normal), observed pixels" in result.output
    assert "Nothing was trained" in result.output
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "epoch 1/1" in result.output
    result = CliRunner().invoke(main, ["--resume", "--epochs", "2", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "epoch 2/2" in result.output
    assert "begun with Labelled of own_programs.py, 10 classes, got mlp VAE" in refused_to_resume(tmp_path / "run")


def refused_to_resume(out: Path) -> str:
    """Return why a VAE cannot go on with the run of a program."""
    from edgevae.train import load_dataset, model_for

    digits = load_dataset("digits")
    with pytest.raises(RunError) as error:
        fit(digits, out, model_for(digits, TrainingConfig()), TrainingConfig(), resume=True)
    return str(error.value)
