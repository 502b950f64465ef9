"What a GPU must show: the CPU's numbers, no waits, every precision, and memory that stays small."
import copy
import warnings

import pytest
import torch
from helpers_small_students import (
    METHODS,
    MODELS,
    NAMES,
    batch,
    losses,
    module,
    rows,
    small_llama,
    small_student,
    small_t5,
)

from cotmi.students.generation import generate_ids, target_log_likelihoods
from cotmi.training.even_slices import EvenOptions, even_vocabulary_pass
from cotmi.training.fused_linear_loss import vocabulary_pass
from cotmi.training.losses import IGNORED, term_weights
from cotmi.training.master_weights import CheckpointedMasterAdamW
from cotmi.training.run_config import RunConfig
from cotmi.training.step import clip_apart


def gradients(made) -> torch.Tensor:
    return torch.cat([p.grad.float().flatten().cpu() for p in made.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("method", "values"), METHODS, ids=NAMES)
def test_losses_and_gradients_are_those_of_the_cpu(family, method, values):
    found = {}
    for device in ("cpu", "cuda"):
        made = module(MODELS[family](), method, device, **values).train()
        total, parts = losses(made, method, device)
        total.backward()
        found[device] = {name: value.item() for name, value in parts.items()}, gradients(made)
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=2e-4, abs=1e-5)
    on_cpu, on_gpu = found["cpu"][1], found["cuda"][1]
    assert (on_gpu - on_cpu).norm() <= 1e-3 * on_cpu.norm()


@pytest.mark.parametrize("pool", [None, "target", "all"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_even_slices_are_the_plain_pass_in_float64(pool, softcap):
    def tensor(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.double)
    states = [tensor(7, t, 16).requires_grad_() for t in (3, 9)]
    weight = tensor(503, 16).requires_grad_()
    labels = [torch.randint(0, 503, (7, t), device="cuda") for t in (3, 9)]
    labels[0][1, 1:], labels[1][2, 4:], labels[1][5] = IGNORED, IGNORED, IGNORED
    items = [(each != IGNORED).sum() for each in labels]
    weights = term_weights(0.5, 0.1)
    plain = vocabulary_pass("plain", states[0], labels[0], states[1], labels[1], weight, pool=pool, weights=weights,
                            softcap=softcap)
    for slice_mb in (1e-6, 0.1, 100):
        even = even_vocabulary_pass(EvenOptions((3, 9), pool, False, weights, slice_mb, True, softcap), torch.double,
                                    states, labels, items, weight)
        for ours, theirs in zip(*(torch.autograd.grad(each.total, [*states, weight], retain_graph=each is plain)
                                  for each in (even, plain)), strict=True):
            assert (ours - theirs).abs().max() < 1e-9
        for name, value in plain.losses.items():
            assert abs(even.losses[name] - value) < 1e-9


ALLOWED = ("masking_utils.py",) # transformers looks whether anything is padded, once a forward pass


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("method", "values"), METHODS, ids=NAMES)
def test_no_step_waits(family, method, values):
    made = module(MODELS[family](), method, "cuda", **values).train()
    optimiser = torch.optim.AdamW(made.parameters(), fused=True)
    given = batch(method, "cuda")

    def step():
        total, _ = made(**given)
        total.backward()
        clip_apart(made, 1.0, torch.nn.utils.clip_grad_norm_)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    step() # what is set up once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waited = [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    assert [place for place in waited if not any(name in place for name in ALLOWED)] == []


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_close_to_float32(family, dtype):
    found = {}
    for precision in (torch.float32, dtype):
        made = module(MODELS[family](), "mi", "cuda").train()
        with torch.autocast("cuda", precision, enabled=precision is not torch.float32):
            total, parts = losses(made, "mi", "cuda")
        scale = 2.0**10 if dtype is torch.float16 else 1.0
        (total * scale).backward()
        found[precision] = {name: value.item() for name, value in parts.items()}, gradients(made) / scale
    assert found[dtype][0] == pytest.approx(found[torch.float32][0], rel=2e-2)
    assert torch.cosine_similarity(found[dtype][1], found[torch.float32][1], dim=0) > 0.99


def test_narrow_weights_learn_by_their_masters():
    made = module(small_t5().to(torch.bfloat16), "mi", "cuda").train()
    optimiser = CheckpointedMasterAdamW(made.parameters(), lr=1e-3, fused=True)
    seen = []
    for _ in range(30):
        with torch.autocast("cuda", torch.bfloat16):
            total, _ = losses(made, "mi", "cuda")
        total.backward()
        optimiser.step()
        optimiser.zero_grad()
        seen.append(total.detach())
    assert torch.stack(seen).isfinite().all() and seen[-1] < 0.9 * seen[0]
    assert all(master.dtype == torch.float32 and master.is_cuda for _, master in optimiser.pairs)
    assert all(torch.equal(weight, master.bfloat16()) for weight, master in optimiser.pairs)


def test_recomputed_activations_change_no_gradient_and_save_memory():
    found = {}
    for recompute in (False, True):
        model = small_llama()
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        made = module(model, "dss", "cuda").train()
        given = batch("dss", "cuda", count=64, longest=200)
        torch.cuda.reset_peak_memory_stats()
        total, _ = made(**given)
        total.backward()
        found[recompute] = torch.cuda.max_memory_allocated(), gradients(made)
    assert (found[True][1] - found[False][1]).norm() <= 1e-4 * found[False][1].norm()
    assert found[True][0] < found[False][0]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", ["eager", "flash_attention_2"])
def test_ways_of_attention_agree(family, name):
    if name == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
        if family == "t5":
            pytest.skip("T5 adds a bias to its scores, which flash attention cannot")
    pytest.importorskip("datasets")
    from cotmi.students.loading import set_attention

    found = []
    for chosen in ("sdpa", name):
        model = MODELS[family]()
        set_attention(model, chosen)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=name != "eager"):
            made = module(model, "mi", "cuda").eval()
            found.append(losses(made, "mi", "cuda")[0].item())
    assert found[1] == pytest.approx(found[0], rel=1e-4 if name == "eager" else 2e-2)


@pytest.mark.parametrize("family", MODELS)
def test_answers_and_scores_are_those_of_the_cpu(family):
    asked = [row["predict_input_ids"] for row in rows(9)]
    candidates = [[[5, 1], [7, 8, 1]]] * 9
    found = {}
    for device in ("cpu", "cuda"):
        student = small_student(MODELS[family]().to(device))
        found[device] = (generate_ids(student, asked, 12, 4).token_ids,
                         [list(each) for each in target_log_likelihoods(student, asked, candidates)])
    same = sum(one == other for one, other in zip(*(found[d][0] for d in found), strict=True))
    assert same >= 8 # a near tie may fall the other way
    for one, other in zip(found["cpu"][1], found["cuda"][1], strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("family", MODELS)
def test_an_adapter_trains_and_is_read_back(family, tmp_path):
    pytest.importorskip("peft")
    from cotmi.students.adapters import AdapterOptions, add_adapter, load_adapter, merge_adapter, save_adapter

    model, plain = MODELS[family](), MODELS[family]()
    adapter = add_adapter(model, AdapterOptions("lora", rank=4, target="all-linear"))
    made = module(model, "mi", "cuda", objective="infonce", features="decoder").train()
    before = copy.deepcopy({name: value.cpu() for name, value in model.state_dict().items()})
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        losses(made, "mi", "cuda")[0].backward()
        optimiser.step()
        optimiser.zero_grad()
    for name, value in model.state_dict().items():
        assert ("lora_B" in name) == (not torch.equal(value.cpu(), before[name])) or "lora_A" in name, name
    save_adapter(adapter, tmp_path, tmp_path)
    again = load_adapter(plain.to("cuda"), tmp_path)
    def states(of):
        with torch.no_grad():
            predict, _ = made.family.forward_tasks(of.eval(), batch("mi", "cuda"))
        return predict.hidden
    expected = states(model)
    assert torch.equal(states(plain), expected)
    assert (states(merge_adapter(again)) - expected).abs().max() < 1e-4


def test_the_head_of_a_wide_vocabulary_stays_small():
    "151,936 words, width 896, sixteen examples: beside the gradient of the head, which both need, less than half."
    def peak(implementation):
        torch.manual_seed(0)
        states = [torch.randn(16, n, 896, device="cuda", requires_grad=True) for n in (4, 64)]
        labels = [torch.randint(0, 151_936, (16, n), device="cuda") for n in (4, 64)]
        weight = torch.randn(151_936, 896, device="cuda").mul_(896**-0.5).requires_grad_()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        terms = vocabulary_pass(implementation, states[0], labels[0], states[1], labels[1], weight, pool="target",
                                weights=term_weights(0.5, 0.1))
        terms.total.backward()
        return torch.cuda.max_memory_allocated() - before, terms.total.item(), weight.grad.norm().item()
    (plain, *theirs), (fused, *ours) = peak("plain"), peak("fused")
    assert ours == pytest.approx(theirs, rel=1e-4)
    gradient = 4 * 151_936 * 896
    assert fused - gradient < (plain - gradient) / 2


PRECISIONS = [{}, {"bf16": True}, {"fp16": True}, {"weights": "bfloat16"}, {"gradient_checkpointing": True},
              {"adapter": "lora", "adapter_rank": 4, "weights": "bfloat16"}]


@pytest.mark.parametrize("values", PRECISIONS, ids=["-".join(each) or "float32" for each in PRECISIONS])
def test_a_whole_training_on_the_gpu(tmp_path, values):
    pytest.importorskip("datasets")
    pytest.importorskip("rouge_score")
    if "adapter" in values:
        pytest.importorskip("peft")
    from cotmi.data.loading import load_data
    from cotmi.students.loading import load_student
    from cotmi.training.trainer import train

    config = RunConfig(dataset="demo", demo_size=60, student="builtin:tiny", method="mi", objective="infonce",
                       batch_size=8, max_steps=6, eval_steps=3, logging_steps=2, learning_rate=1e-3, **values)
    data = load_data("demo", demo_size=60)
    result = train(config, data, tmp_path, progress=False)
    assert result.steps == 6 and result.student.device.type == "cuda"
    back = load_student(str(tmp_path / "student"))
    expected = {name: value.cpu() for name, value in result.student.model.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in back.model.state_dict().items())
