"""Graphs that are random, endless, far too large, or not of ONNX's operators; their SHA-256 are right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.runtime.hostile.case import Case, graph

RANDOM, SIZE, WITHIN = "draws random numbers", "asks for more than", "holds graphs within the graph"
TRAINING, OWN, NOT_STANDARD = "is in training mode", "defines operators of its own", "is not a standard ONNX operator"


def through(*nodes: NodeProto, constants: Sequence[TensorProto] = ()) -> Callable[[ModelProto], None]:
    """A change that sends the first input through nodes, from `given` to `made`."""

    def change(model: ModelProto) -> None:
        taken = model.graph.input[0].name
        for node in model.graph.node:
            node.input[:] = ["made" if name == taken else name for name in node.input]
        first = copy.deepcopy(nodes)
        for node in first:
            node.input[:] = [taken if name == "given" else name for name in node.input]
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*first, *rest])
        model.graph.initializer.extend(constants)

    return change


def sizes(*sizes: int, name: str = "sizes") -> TensorProto:
    return numpy_helper.from_array(np.array(sizes, np.int64), name)


def _branch(*nodes: NodeProto) -> GraphProto:
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)])


def _if(branch: GraphProto) -> tuple[NodeProto, NodeProto]:
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    return yes, helper.make_node("If", ["yes"], ["made"], then_branch=branch, else_branch=branch)


def _random() -> Iterator[Case]:
    for operator in ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"):
        yield graph(f"random-{operator}", through(helper.make_node(operator, ["given"], ["made"])), RANDOM)
    for operator in ("RandomNormal", "RandomUniform"):
        node = helper.make_node(operator, [], ["made"], shape=[1, 64])
        yield graph(f"random-{operator}", through(node), RANDOM)
        yield graph(f"random-{operator}-lazily", through(node), RANDOM, "elbo.onnx")
    inside = helper.make_node("RandomNormal", [], ["inside"], shape=[1, 64])
    yield graph("random-in-a-branch", through(*_if(_branch(inside))), WITHIN)
    yield graph("random-in-branches", through(*_if(_branch(*_if(_branch(inside))))), WITHIN)
    deep = _branch(inside)
    for _ in range(20):
        deep = _branch(helper.make_node("If", ["yes"], ["inside"], then_branch=deep, else_branch=_branch(inside)))
    yield graph("deep-branches", through(*_if(deep)), WITHIN)
    yield graph("random-with-a-seed", through(helper.make_node("Bernoulli", ["given"], ["made"], seed=1.0)), RANDOM)
    yield graph("dropout", through(helper.make_node("Dropout", ["given"], ["made"])), "Dropout must not be")
    yes = numpy_helper.from_array(np.array(True), "yes")
    dropout = helper.make_node("Dropout", ["given", "", "yes"], ["made"])
    yield graph("dropout-in-training", through(dropout, constants=[yes]), "Dropout must not be")
    names = [helper.make_node("Identity", ["given"], [name]) for name in ("s", "b", "m", "v")]
    norm = helper.make_node("BatchNormalization", ["given", "s", "b", "m", "v"], ["made", "r", "w"], training_mode=1)
    yield graph("norm-in-training", through(*names, norm), TRAINING)


def _own(model: ModelProto, operator: str = "RandomNormalLike", domain: str = "local") -> None:
    node = helper.make_node(operator, ["a"], ["b"])
    model.functions.append(helper.make_function(domain, "F", ["a"], ["b"], [node], [helper.make_opsetid("", 20)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    through(helper.make_node("F", ["given"], ["made"], domain=domain))(model)


def _endless() -> Iterator[Case]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["was"], ["is"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("was", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("is", TensorProto.FLOAT, None),
        ],
    )
    yes = numpy_helper.from_array(np.array(True), "go_on")
    times = numpy_helper.from_array(np.array(2**62, np.int64), "times")
    for name, given in (("for-ever", ["", "go_on", "given"]), ("often", ["times", "", "given"])):
        node = helper.make_node("Loop", given, ["made"], body=body)
        yield graph(f"loop-{name}", through(node, constants=[yes, times]), WITHIN)
        yield graph(f"loop-{name}-lazily", through(node, constants=[yes, times]), WITHIN, "decoder.onnx")
    scan = helper.make_node("Scan", ["given"], ["made"], body=body, num_scan_inputs=1)
    yield graph("scan", through(scan), WITHIN)
    yield graph("sequence-map", through(helper.make_node("SequenceMap", ["given"], ["made"], body=body)), WITHIN)
    many = [helper.make_node("Identity", ["given"], ["n0"])]
    many += [helper.make_node("Identity", [f"n{number}"], [f"n{number + 1}"]) for number in range(11_000)]
    yield graph("eleven-thousand-nodes", through(*many, helper.make_node("Neg", ["n9"], ["made"])), "has more than")


def _large() -> Iterator[Case]:
    huge = sizes(2**20, 2**20)
    for name, nodes, constants in (
        ("constant", [helper.make_node("ConstantOfShape", ["sizes"], ["big"])], [huge]),
        ("one-axis", [helper.make_node("ConstantOfShape", ["sizes"], ["big"])], [sizes(2**40)]),
        ("expand", [helper.make_node("Expand", ["x", "sizes"], ["big"])], [sizes(2**30, 1, 1)]),
        ("tile", [helper.make_node("Tile", ["x", "sizes"], ["big"])], [sizes(2**30, 1)]),
        ("pad", [helper.make_node("Pad", ["x", "sizes"], ["big"])], [sizes(0, 0, 2**40, 0)]),
        (
            "one-hot",
            [helper.make_node("OneHot", ["sizes", "depth", "sizes"], ["big"])],
            [huge, sizes(2**40, name="depth")],
        ),
        (
            "cast",
            [helper.make_node("Cast", ["sizes"], ["s"], to=7), helper.make_node("ConstantOfShape", ["s"], ["big"])],
            [huge],
        ),
        (
            "sum",
            [helper.make_node("Add", ["sizes", "sizes"], ["s"]), helper.make_node("ConstantOfShape", ["s"], ["big"])],
            [huge],
        ),
        (
            "range",
            [helper.make_node("Range", ["a", "sizes", "b"], ["big"])],
            [numpy_helper.from_array(np.array(size), name) for name, size in (("a", 1), ("sizes", 2**40), ("b", 1))],
        ),
    ):
        size = [helper.make_node("Size", ["big"], ["n"]), helper.make_node("Cast", ["n"], ["f"], to=1)]
        used = helper.make_node("Add", ["given", "f"], ["made"])
        yield graph(f"huge-{name}", through(*nodes, *size, used, constants=constants), SIZE)
        yield graph(f"huge-{name}-lazily", through(*nodes, *size, used, constants=constants), SIZE, "elbo.onnx")
    value = helper.make_node("Constant", [], ["sizes"], value_ints=[2**20, 2**20])
    inside = helper.make_node("ConstantOfShape", ["sizes"], ["inside"])
    yield graph("huge-in-a-branch", through(value, *_if(_branch(inside))), WITHIN)
    for name in ("pads", "strides", "dilations", "output_shape"):
        node = helper.make_node("ConvTranspose", ["given", "given"], ["made"])
        node.attribute.append(helper.make_attribute(name, [2**30] * 4))
        yield graph(f"huge-{name}", through(node), SIZE)
    float_scales = numpy_helper.from_array(np.array([1, 1e9], np.float32), "sizes")
    yield graph(
        "huge-scale",
        through(helper.make_node("Resize", ["given", "", "sizes"], ["made"]), constants=[float_scales]),
        f"{SIZE}|Dimension mismatch",
    )


def _growing() -> Iterator[Case]:
    """What a few bytes become, by operators that every network has."""
    doubled = [helper.make_node("Identity", ["one"], ["c0"])]
    doubled += [helper.make_node("Concat", [f"c{n}"] * 2, [f"c{n + 1}"], axis=0) for n in range(30)]
    large = [helper.make_node("Identity", ["given"], ["c0"])]
    large += [helper.make_node("Concat", [f"c{n}"] * 2, [f"c{n + 1}"], axis=1) for n in range(28)]
    squared = [
        helper.make_node("Transpose", ["given"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["given", "turned"], ["each-with-each"]),
        helper.make_node("ReduceSum", ["each-with-each", "last"], ["c30"], keepdims=1),
    ]
    outer = [
        helper.make_node("MatMul", ["tall", "wide"], ["c29"]),
        helper.make_node("Transpose", ["c29"], ["c30"], perm=[1, 0]),
    ]
    rows = [
        helper.make_node("Shape", ["given"], ["shape"]),
        helper.make_node("Mul", ["shape", "many"], ["larger"]),
        helper.make_node("Tile", ["given", "larger"], ["c30"]),
    ]
    read = [
        helper.make_node("ReduceMax", ["given"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["count"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["count", "first"], ["counts"]),
        helper.make_node("ConstantOfShape", ["counts"], ["c30"]),
    ]
    one, last, first = np.ones(100, np.float32), np.array([1]), np.array([0])
    tall, wide = np.ones((2**13, 1), np.float32), np.ones((1, 2**15), np.float32)
    constants = [
        *(numpy_helper.from_array(array, name) for name, array in (("one", one), ("last", last), ("first", first))),
        *(numpy_helper.from_array(array, name) for name, array in (("tall", tall), ("wide", wide))),
        sizes(2**20, name="many"),
    ]
    for name, nodes, end, says in (
        ("constants-doubled", doubled, "c30", SIZE),
        ("rows-doubled", large, "c28", SIZE),
        ("constants-multiplied", outer, "c30", SIZE),
        ("each-row-with-each", squared, "c30", "grows faster than the batch"),
        ("tiled-by-its-shape", rows, "c30", SIZE),
        ("as-many-as-it-reads", read, "c30", "depends on more than the batch"),
        ("as-many-as-are-not-zero", [helper.make_node("NonZero", ["given"], ["c30"])], "c30", "depends on more than"),
    ):
        most = [
            helper.make_node("Cast", [end], ["cast"], to=1),
            helper.make_node("ReduceMax", ["cast"], ["m"], keepdims=0),
        ]
        used = [*nodes, *most, helper.make_node("Add", ["given", "m"], ["made"])]
        yield graph(f"growing-{name}", through(*used, constants=constants), says)
        yield graph(f"growing-{name}-lazily", through(*used, constants=constants), says, "decoder.onnx")


OPERATORS: tuple[Case, ...] = (
    *_growing(),
    *_random(),
    *_endless(),
    *_large(),
    graph("own-operators", _own, OWN),
    graph("own-operators-that-call-themselves", lambda model: _own(model, "F"), OWN),
    graph("own-operator-with-a-standard-name", lambda model: _own(model, "Relu", ""), OWN),
    *(
        graph(f"domain-{number}", through(helper.make_node(name, ["given"], ["made"], domain=domain)), NOT_STANDARD)
        for number, (domain, name) in enumerate(
            (
                *(("com.microsoft", "EPContext"), ("com.microsoft", "Attention"), ("com.example", "Evil")),
                *(("ai.onnx.ml", "Scaler"), ("ai.onnx.training", "Gradient"), ("ai.onnx.contrib", "PyOp")),
                *(("\x1b[2J", "Evil"), ("com.example", "\x1b[2J"), ("é", "Evil")),
            )
        )
    ),
    graph("unknown-operator", through(helper.make_node("Evil", ["given"], ["made"])), "cannot load"),
    graph("circle", through(helper.make_node("Add", ["given", "made"], ["made"])), "nodes must be in order"),
)
