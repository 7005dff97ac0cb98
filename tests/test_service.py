"""The HTTP service of the examples: the answers of direct calls, from runs that requests share."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import edgevae

from .serving import NPY, REPOSITORY, Client, health, hold, load, npy, png, post, reference, serve, until


@pytest.fixture
def model() -> edgevae.Model:
    return load("mnist-mlp")


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return reference("mnist-mlp")["x"]


@pytest.fixture
def gate(model: edgevae.Model) -> Iterator[threading.Event]:
    """The model's reconstructions begin when this is set."""
    opened = hold(model)
    yield opened
    opened.set()


@pytest.mark.parametrize("name", ["mnist-mlp", "mnist-conditional", "mnist-hierarchical", "mnist-mixture"])
def test_64_requests_at_once_get_the_answers_of_direct_calls_from_fewer_runs(name: str) -> None:
    model, arrays = load(name), reference(name)

    async def ask(client: Client, index: int) -> None:
        rows, seed = slice(index, index + 1 + index % 5), index * 7
        x = arrays["x"][rows]
        y = arrays["y"][rows] if "y" in arrays else None
        query: dict[str, Any] = {} if y is None else {"y": ",".join(map(str, y)) if len(y) > 1 else int(y[0])}
        if index % 3 == 0:
            answer = await post(client, "/score", npy(x), seed=seed, **query)
            assert answer.status_code == 200, answer.text
            check_score(answer.json(), model, model.score(x, seed, y=y))
            return
        if index % 3 == 1:
            query["seed"] = seed
        answer = await post(client, "/reconstruct", npy(x), **query)
        assert answer.status_code == 200, answer.text
        found = np.load(io.BytesIO(answer.content))
        expected = model.reconstruct(x, y=y, seed=seed if index % 3 == 1 else None)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)  # to the last bit

    async def talk(client: Client) -> dict[str, Any]:
        await asyncio.gather(*(ask(client, index) for index in range(64)))
        return await health(client)

    state = serve(model, talk)
    assert state["calls"] == 64
    assert state["runs"] <= 32


def check_score(answer: dict[str, Any], model: edgevae.Model, expected: edgevae.Score) -> None:
    found = {key: np.array([row[key] for row in answer["rows"]]) for key in answer["rows"][0]}
    np.testing.assert_array_equal(found["reconstruction"], expected.reconstruction)
    np.testing.assert_array_equal(found["kl"], expected.kl)
    np.testing.assert_array_equal(found["elbo"], expected.elbo)
    assert answer["threshold"] == model.threshold(0.01)
    np.testing.assert_array_equal(found["is_anomaly"], expected.elbo < model.threshold(0.01))


def test_all_that_wait_share_the_next_run(model: edgevae.Model, gate: threading.Event, x: NDArray[np.float32]) -> None:
    async def talk(client: Client) -> dict[str, Any]:
        tasks = [asyncio.create_task(post(client, "/reconstruct", npy(x[:1])))]
        await until(lambda state: state["runs"] == 1, client)
        tasks += [asyncio.create_task(post(client, "/reconstruct", npy(x[i : i + 2]), seed=i)) for i in range(10)]
        await until(lambda state: state["waiting"] == 10, client)
        gate.set()
        for index, answer in enumerate((await asyncio.gather(*tasks))[1:]):
            expected = model.reconstruct(x[index : index + 2], seed=index)
            np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), expected)
        return await health(client)

    state = serve(model, talk)
    assert (state["calls"], state["runs"], state["waiting"], state["open"]) == (11, 2, 0, 0)


def test_a_run_has_no_more_rows_than_allowed(
    model: edgevae.Model, gate: threading.Event, x: NDArray[np.float32]
) -> None:
    async def talk(client: Client) -> int:
        tasks = [asyncio.create_task(post(client, "/reconstruct", npy(x[:3])))]
        await until(lambda state: state["runs"] == 1, client)
        tasks += [asyncio.create_task(post(client, "/reconstruct", npy(x[:3]))) for _ in range(6)]
        await until(lambda state: state["waiting"] == 6, client)
        gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        runs: int = (await health(client))["runs"]
        return runs

    assert serve(model, talk, max_rows=6) == 4  # one that was alone, and then pairs


def test_without_batching_each_request_is_a_run(model: edgevae.Model, x: NDArray[np.float32]) -> None:
    async def talk(client: Client) -> dict[str, Any]:
        await asyncio.gather(*(post(client, "/reconstruct", npy(x[:1])) for _ in range(8)))
        return await health(client)

    assert serve(model, talk, batching=False)["runs"] == 8


@pytest.mark.parametrize(("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_an_image_is_answered_as_a_png(
    kind: str, media_type: str, model: edgevae.Model, x: NDArray[np.float32]
) -> None:
    body = png(x[0], kind=kind)
    sent = np.asarray(Image.open(io.BytesIO(body))).reshape(1, 28, 28)
    expected = np.rint(model.reconstruct(sent, seed=3).reshape(28, 28) * 255)
    score = model.score(sent)

    async def talk(client: Client) -> None:
        answer = await post(client, "/reconstruct", body, media_type, seed=3)
        assert answer.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected)
        check_score((await post(client, "/score", body, media_type)).json(), model, score)

    serve(model, talk)


def test_health_says_what_runs_where(model: edgevae.Model) -> None:
    state = serve(model, health)
    assert state == {
        "status": "ok",
        "model": "mnist-mlp",
        "provider": "cpu",
        **dict.fromkeys(("open", "waiting", "calls", "runs"), 0),
    }


def test_a_bad_request_does_not_spoil_those_that_wait_with_it(
    model: edgevae.Model, gate: threading.Event, x: NDArray[np.float32]
) -> None:
    async def talk(client: Client) -> None:
        good = [asyncio.create_task(post(client, "/reconstruct", npy(x[i : i + 1]))) for i in range(3)]
        await until(lambda state: state["calls"] == 3, client)
        bad = await post(client, "/reconstruct", npy(np.full((1, 784), np.nan, np.float32)))
        assert (bad.status_code, bad.json()) == (422, {"detail": "x must not hold NaN, got NaN in row 0"})
        gate.set()
        for index, answer in enumerate(await asyncio.gather(*good)):
            np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), model.reconstruct(x[index : index + 1]))

    serve(model, talk)


def test_a_failure_of_the_model_is_no_traceback_and_the_service_goes_on(
    model: edgevae.Model, monkeypatch: pytest.MonkeyPatch, x: NDArray[np.float32]
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise edgevae.EdgeVAEError("cuda failed in encoder.onnx: out of memory")

    async def talk(client: Client) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(model, "reconstruct", fail)
            answer = await post(client, "/reconstruct", npy(x[:1]))
        assert answer.status_code == 500
        assert answer.json() == {"detail": "the model failed; the request is not at fault"}
        assert (await post(client, "/reconstruct", npy(x[:1]))).status_code == 200

    serve(model, talk)


def test_the_program_serves_until_a_signal_comes(x: NDArray[np.float32]) -> None:
    command = [sys.executable, "examples/service.py", "models/mnist-mlp", "--port", "0", "--max-rows", "8"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = None
            while url is None:
                line = process.stderr.readline()
                assert line, "the service ended before it listened"
                url = re.search(r"http://127\.0\.0\.1:\d+", line)
            with httpx.Client(base_url=url[0], headers={"Content-Type": NPY}) as client:
                check_program(client, x)
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(10) in (0, -signal.SIGTERM)
            assert "Application shutdown complete" in rest
            assert "Traceback" not in rest
        finally:
            process.kill()


def check_program(client: httpx.Client, x: NDArray[np.float32]) -> None:
    def ask(seed: int) -> NDArray[np.float32]:
        answer = client.post("/reconstruct", content=npy(x[:1]), params={"seed": seed})
        assert answer.status_code == 200, answer.text
        found: NDArray[np.float32] = np.load(io.BytesIO(answer.content))
        return found

    model = load("mnist-mlp")
    with ThreadPoolExecutor(8) as pool:
        for seed, found in enumerate(pool.map(ask, range(32))):
            np.testing.assert_array_equal(found, model.reconstruct(x[:1], seed=seed))
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as gone:
        request = "POST /score HTTP/1.1", "Host: x", f"Content-Type: {NPY}", "Content-Length: 99", "", "cut off"
        gone.sendall("\r\n".join(request).encode())
    assert client.post("/score", content=npy(x[:9])).status_code == 413
    assert client.get("/health").json()["calls"] == 32
    assert client.get("/openapi.json").status_code == 200
