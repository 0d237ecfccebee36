"""Where ops go: numbers of layers, patterns, several GPUs, what fits; and the parts that a program is cut into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import OPTIONS, Model, Shape, transformer

from pyllm import backends
from pyllm.backends import placement
from pyllm.backends.base import Backend, DeviceInfo, Executable, Probe, kv_bytes
from pyllm.config import ExecutionOptions, PlacementOptions
from pyllm.errors import BackendError, RequestError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Op, Program, inputs, weight_names
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.elementwise import Add
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.select import SelectRows

N_LAYERS = 6
DENSE = Shape(n_layers=N_LAYERS, n_embd=32, n_heads=1, n_kv_heads=1, head_dim=32, n_rot=32, n_ff=64, n_vocab=48)
MODEL = transformer(DENSE)
EXPERTS = transformer(replace(DENSE, n_experts=4))


def cpu() -> DeviceInfo:
    return DeviceInfo("cpu", "cpu", 0, "", 1 << 40, None, False)


def gpu(i: int = 0, free: int | None = 1 << 40) -> DeviceInfo:
    return DeviceInfo(f"gpu{i}", "plain", i, "", free, free, True)


class Plain(Backend):
    """Counts memory as backends do that say nothing of it."""

    name = "plain"

    def probe(self) -> Probe:
        return Probe(self.name, True)

    def compile(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> Executable:
        raise AssertionError("nothing is compiled here")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, get = Plain(), backends.get
    monkeypatch.setattr(backends, "get", lambda name: plain if name == "plain" else get(name))


def place(
    devices: Sequence[DeviceInfo] = (gpu(), cpu()), model: Model = MODEL, named: tuple[str, ...] = (), **options: Any
) -> list[tuple[Op, str]]:
    options["devices"] = named
    placed = placement.place(model.program, model.tensors(), PlacementOptions(**options), devices, OPTIONS)
    return list(zip(model.program.ops, placed.device_of_op, strict=True))


def layers(placed: Sequence[tuple[Op, str]]) -> dict[int, str]:
    """The device of each layer, all of whose ops are on it."""
    out: dict[int, str] = {}
    for op, name in placed:
        assert out.setdefault(op.layer, name) == name
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6])
def test_the_last_layers_and_the_head_first(n: int) -> None:
    found = layers(place(n_gpu_layers=n))
    assert [layer for layer, name in sorted(found.items()) if name == "gpu0"] == list(range(N_LAYERS + 1 - n, 7))


@pytest.mark.parametrize("n", [N_LAYERS + 1, 99, "all"])
def test_all_layers_take_the_token_table_along(n: int | str) -> None:
    assert set(layers(place(n_gpu_layers=n)).values()) == {"gpu0"}


@pytest.mark.parametrize("n", ["auto", "all", 5])
def test_without_a_gpu_everything_is_on_the_cpu(n: int | str) -> None:
    assert {name for _, name in place([cpu()], n_gpu_layers=n)} == {"cpu"}


def test_split_in_proportion() -> None:
    found = layers(place([gpu(0), gpu(1), cpu()], n_gpu_layers="all", tensor_split=(2.0, 1.0)))
    assert [found[i] for i in range(-1, 7)] == ["gpu0"] * 6 + ["gpu1"] * 2
    found = layers(place([gpu(0), gpu(1), cpu()], n_gpu_layers=4, tensor_split=(1.0, 0.0)))
    assert [found[i] for i in range(-1, 7)] == ["cpu"] * 4 + ["gpu0"] * 4


def test_split_by_free_memory_with_the_head_on_the_main_gpu() -> None:
    devices = [gpu(0, 1 << 30), gpu(1, 3 << 30), cpu()]
    for main, last in ((0, "gpu0"), (1, "gpu1")):
        found = layers(place(devices, n_gpu_layers="all", main_gpu=main))
        assert found[N_LAYERS] == last
        assert 1 <= list(found.values()).count("gpu0") <= 2 + (main == 1)


def test_split_of_what_layers_take() -> None:
    """Layers whose experts stay on the CPU take little: the others do not all go to the last GPU."""
    experts = transformer(replace(DENSE, n_experts=64))
    for split, used in (((), {"gpu1", "gpu0"}), ((1.0, 1.0), {"gpu1"})):
        placed = place([gpu(0), gpu(1), cpu()], experts, n_gpu_layers="all", n_cpu_moe=3, tensor_split=split)
        found = [name for op, name in placed if isinstance(op, MixtureOfExperts)]
        assert found[:3] == ["cpu"] * 3
        assert set(found[3:]) == used


@pytest.mark.parametrize("busy", [0, 1])
def test_a_gpu_that_others_use_does_not_keep_the_other_empty(busy: int) -> None:
    free = [int(1.2 * needed(99))] * 2
    free[busy] = needed(99) // 100
    found = [name for _, name in place([gpu(0, free[0]), gpu(1, free[1]), cpu()])]
    assert "cpu" not in found
    assert found.count(f"gpu{1 - busy}") > 0.9 * len(found)


def test_devices_that_are_named_are_used() -> None:
    devices = [gpu(0), gpu(1), cpu(), DeviceInfo("slow", "plain", 0, "", None, None, False)]
    assert set(layers(place(devices, n_gpu_layers="all", named=("gpu1",))).values()) == {"gpu1"}
    assert set(layers(place(devices, n_gpu_layers="all", named=("slow",))).values()) == {"slow"}
    assert set(layers(place(devices, n_gpu_layers="all", named=("cpu",))).values()) == {"cpu"}


def test_patterns_move_what_uses_the_weights() -> None:
    rules = ((r"blk\.\d+\.ffn_.*_exps\.", "cpu"), (r"blk\.3", "GPU1"), ("exps", "gpu1"))
    for op, name in place(
        [gpu(0), gpu(1), cpu()], EXPERTS, n_gpu_layers="all", named=("gpu0",), override_tensors=rules
    ):
        if isinstance(op, MixtureOfExperts):
            assert name == "cpu", "the first pattern that matches counts"
        elif weight_names(op):
            assert name == ("gpu1" if op.layer == 3 else "gpu0")
        if isinstance(op, Attention):
            assert name == "gpu0", "KV memory is where the layer is"


def test_what_lies_between_moved_products_moves_along() -> None:
    placed = place(n_gpu_layers="all", override_tensors=(("ffn_(gate|up|down)", "cpu"),))
    moved = [type(op).__name__ for op, name in placed if name == "cpu"]
    assert moved == ["Linear", "Linear", "GatedActivation", "Linear"] * N_LAYERS


def test_experts_of_some_layers_stay() -> None:
    placed = place(model=EXPERTS, n_gpu_layers="all", n_cpu_moe=2)
    assert [(type(op), op.layer) for op, name in placed if name == "cpu"] == [
        (MixtureOfExperts, 0),
        (MixtureOfExperts, 1),
    ]


def test_kv_stays() -> None:
    placed = place(n_gpu_layers="all", kv_offload=False)
    assert all(name == "cpu" for op, name in placed if isinstance(op, Attention))
    assert all(name == "gpu0" for op, name in placed if weight_names(op))


def test_wrong_choices_say_what_is_wrong() -> None:
    for rule, error, message in (
        (("(", "cpu"), RequestError, "not a regular expression"),
        (("ffn", "tpu0"), BackendError, "no device 'tpu0' among those that are used: gpu0, cpu"),
        (("ffm_down", "cpu"), RequestError, "no tensor of the model matches 'ffm_down'"),
    ):
        with pytest.raises(error, match=message):
            place(n_gpu_layers="all", override_tensors=(rule,))
    with pytest.raises(BackendError, match="no device 'gpu7' among those that are used: gpu0, cpu"):
        place(named=("gpu7",))
    with pytest.raises(RequestError, match="a share of the layers for each GPU, gpu0, not 3"):
        place(n_gpu_layers="all", tensor_split=(1.0, 1.0, 1.0))
    with pytest.raises(RequestError, match="no GPU 1 for main_gpu; counted from 0 they are gpu0"):
        place(n_gpu_layers="all", main_gpu=1)
    with pytest.raises(BackendError, match="no CPU backend"):
        place([gpu()], n_gpu_layers=2)


def test_a_device_alone() -> None:
    """Nothing else could take what does not fit: whether it does, loading it shows."""
    assert {name for _, name in place([gpu(free=1)])} == {"gpu0"}
    assert {name for _, name in place([gpu()], n_gpu_layers="all")} == {"gpu0"}
    with pytest.raises(RequestError, match="no tensor of the model matches"):
        place([cpu()], override_tensors=(("ffm_down", "cpu"),))


# --- what fits


def needed(n: int, model: Model = MODEL, options: ExecutionOptions = OPTIONS) -> int:
    """Bytes on the GPU with n layers there."""
    tensors, wanted = model.tensors(), PlacementOptions(n_gpu_layers=n)
    placed = placement.place(model.program, tensors, wanted, [gpu(), cpu()], options)
    plan = placement.cut(model.program, placed.device_of_op)
    if "gpu0" not in plan.programs:
        return 0
    return sum(placement.memory_needed(plan, tensors, options, [gpu(), cpu()])["gpu0"].values())


@pytest.mark.parametrize("n", [0, 1, 3, 6])
def test_auto_takes_the_most_that_fits(n: int) -> None:
    between = (needed(n) + needed(n + 1)) // 2
    devices = [gpu(free=int(between / (1 - placement.SPARE))), cpu()]
    placed = placement.place(MODEL.program, MODEL.tensors(), PlacementOptions(), devices, OPTIONS)
    assert placed.n_gpu_layers == n
    assert place(devices) == place(n_gpu_layers=n)


def test_auto_takes_all_where_it_fits_or_nobody_knows() -> None:
    for free in (needed(99) * 2, None):
        assert {name for _, name in place([gpu(free=free), cpu()])} == {"gpu0"}


def test_auto_leaves_the_token_table_where_only_that_does_not_fit() -> None:
    model = transformer(replace(DENSE, n_vocab=4800))
    table = model.tensors()["token_embd.weight"].n_bytes
    free = (needed(99, model) - table // 2) / (1 - placement.SPARE)
    assert [name for op, name in place([gpu(free=int(free)), cpu()], model) if isinstance(op, Embed)] == ["cpu"]


def test_auto_counts_kv_and_what_stays_away() -> None:
    long, tensors = replace(OPTIONS, n_pages=4096), EXPERTS.tensors()
    devices = [gpu(free=int(needed(99, EXPERTS) / (1 - placement.SPARE)) + 1), cpu()]

    def most(options: ExecutionOptions, **choice: Any) -> int:
        return placement.place(EXPERTS.program, tensors, PlacementOptions(**choice), devices, options).n_gpu_layers

    assert most(OPTIONS) == most(long, kv_offload=False) == N_LAYERS + 2
    assert most(long) < N_LAYERS
    longer = replace(OPTIONS, n_pages=2 * OPTIONS.n_pages)
    assert most(longer) < most(longer, n_cpu_moe=99)


def test_auto_fits_every_gpu() -> None:
    half = needed(99) * 0.75 / (1 - placement.SPARE)
    devices = [gpu(0, int(half)), gpu(1, int(half)), cpu()]
    found = place(devices)
    assert {name for _, name in found} == {"gpu0", "gpu1"}
    plan = placement.cut(MODEL.program, [name for _, name in found])
    assert placement.fits(plan, MODEL.tensors(), OPTIONS, devices)
    # a share that one GPU cannot hold limits both
    placed = placement.place(
        MODEL.program, MODEL.tensors(), PlacementOptions(tensor_split=(3.0, 1.0)), devices, OPTIONS
    )
    assert 3 <= placed.n_gpu_layers < N_LAYERS + 1


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "q8_0"])
def test_kv_by_shape(kv_dtype: Any) -> None:
    positions, per = OPTIONS.n_pages * OPTIONS.page_size, {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}[kv_dtype]
    assert kv_bytes(MODEL.program, replace(OPTIONS, kv_dtype=kv_dtype)) == N_LAYERS * positions * 64 * per


def test_kv_of_a_type_that_a_backend_lacks_is_refused() -> None:
    for name in ("cpu", "reference"):
        oracle.need(name)
        with pytest.raises(BackendError, match="has no KV cache in q8_0; it has f16, f32"):
            oracle.compiled(name, MODEL, MODEL.tensors(), replace(OPTIONS, kv_dtype="q8_0"))


# --- parts


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=len(EXPERTS.program.ops), max_size=len(EXPERTS.program.ops)))
def test_parts_of_any_placement(device_of_op: list[str]) -> None:
    """Each op runs once, in an order in which all that it reads is there, sent by the one and received by the other."""
    program = EXPERTS.program
    plan = placement.cut(program, device_of_op)
    assert plan.programs.keys() == set(device_of_op)
    there: dict[str, set[int]] = {name: set() for name in plan.programs}
    sent: set[int] = set()
    n_run, expected = 0, dict.fromkeys(plan.programs, 0)
    for name, number in plan.schedule:
        part = plan.programs[name]
        assert number == expected[name]
        expected[name] += 1
        stage = part.stages[number]
        received = {v.id for v in stage.receives}
        assert received <= sent
        assert not received & there[name], "it was there"
        there[name] |= received
        for op in part.ops[stage.start : stage.stop]:
            assert {v.id for v in inputs(op)} <= there[name]
            there[name].add(op.out.id)
            n_run += 1
        assert {v.id for v in stage.sends} <= there[name]
        sent |= {v.id for v in stage.sends}
    assert n_run == len(program.ops)
    assert {v.id for v in program.results} <= sent or len(plan.programs) == 1
    for name, part in plan.programs.items():
        assert len(part.stages) == expected[name]
        caches = [op.cache for op in part.ops if isinstance(op, Attention)]
        assert sorted(caches) == list(range(len(part.kv)))
        assert part.of_output_rows() == program.of_output_rows() & there[name]


def test_neighbours_on_one_device_are_one_stage() -> None:
    """Two devices that each have half of the layers: one crossing, whatever the order of ops within a layer."""
    plan = placement.cut(MODEL.program, [name for _, name in place(n_gpu_layers=4)])
    assert plan.schedule == (("cpu", 0), ("gpu0", 0))
    (stage,) = plan.programs["gpu0"].stages
    assert len(stage.receives) == 1
    assert stage.receives[0].width == DENSE.n_embd


def test_one_device_has_the_program_itself() -> None:
    plan = placement.cut(MODEL.program, ["cpu"] * len(MODEL.program.ops))
    assert plan.programs["cpu"] is MODEL.program
    assert plan.schedule == (("cpu", 0),)


def test_a_whole_program_is_one_stage() -> None:
    program = MODEL.program
    (stage,) = program.stages
    assert (stage.start, stage.stop, stage.receives) == (0, len(program.ops), ())
    assert stage.sends == (program.hidden, program.logits)
    rows = {op.out.id for op in program.ops if type(op).__name__ == "SelectRows"}
    assert rows <= program.of_output_rows()
    assert np.all([op.out.id not in program.of_output_rows() for op in program.ops if isinstance(op, Attention)])


def test_attention_that_shares_a_cache_is_where_the_cache_is() -> None:
    """The last layer is on the GPU; its attention reads the first layer's keys and values, which are on the CPU."""
    heads = {"n_heads": 1, "n_kv_heads": 1, "head_dim": 32, "v_head_dim": 32, "scale": 1.0}
    b = oracle.Builder()
    x = b(Embed(table=b.t("table", 48, 32)))
    for layer in range(2):
        b.layer = layer
        q = b(Linear(x=x, weight=b.t(f"q{layer}", 32, 32)))
        own = {"k": None, "v": None, "cache": 0} if layer else {"k": x, "v": x}
        x = b(Add(a=x, b=b(Attention(q=q, **own, **heads))))  # type: ignore[arg-type]
    b.layer = 2
    y = b(SelectRows(x=x))
    model = b.model(y, y, n_layers=2)
    placed = place(model=model, n_gpu_layers=2)
    assert [(op.layer, name) for op, name in placed if isinstance(op, Attention)] == [(0, "cpu"), (1, "cpu")]
    assert {name for op, name in placed if op.layer == 1 and isinstance(op, Linear)} == {"gpu0"}
    parts = placement.cut(model.program, [name for _, name in placed]).programs
    assert [len(parts[name].kv) for name in ("cpu", "gpu0")] == [1, 0]
    reader = next(op for op in parts["cpu"].ops if isinstance(op, Attention) and op.k is None)
    assert reader.cache == 0
