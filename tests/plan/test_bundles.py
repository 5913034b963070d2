"""Cycles of kernels from the compiler's dump: what is counted, and what the real compiler gives."""

from __future__ import annotations

import pytest

from vlm_jax.plan import bundles

# Two bundles before a grid of four steps (two turns more for copies); in it one bundle, and a loop of two bundles over
# three groups; the test that ends the grid stands, as the compiler likes to put it, inside the inner loop.
DUMP = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s1 = smov 0 }
   0x1   :  { %s2 = smov 0 }
   0x2 LB: > { %s3 = sadd.s32 1, %s2 }
   0x3 LB: >> { %p4_p0 = scmp.ge.s32.totalorder %s9, 3 /* loop exit test */  ;;  %p5_p1 = scmp.ge.s32.totalorder (%p4_p0), %s3, 6 /* loop exit test */ }
   0x4   : >> { %7 = sbr.rel (!%p4_p0) target = $region3 }
   0x5   : > { %8 = sbr.rel (!%p5_p1) target = $region2 }
0x1006   :  {} /* end */
"""  # noqa: E501


def test_loops_are_counted_out():
    assert bundles.count(DUMP, steps=4) == 3 + 4 * (2 + 3 * 2)
    assert bundles.count(DUMP, steps=1) == 3 + 6 * (2 + 3 * 2)


def test_work_of_the_first_step_counts_once():
    step = """\
   0x2   : > { %p6_p3 = scmp.ne.s32.totalorder %s2, 0 }
   0x2   : > { %9 = sbr.rel (%p6_p3) target = $region4 }
   0x2   : > { %10 = vst [vmem:%s5] sm:$0xff %v1 }
   0x2   : > { %11 = vst [vmem:%s6] sm:$0xff %v1 }
   0x2 PF: > { %12 = vld [vmem:%s5] sm:$0xff }
"""
    dump = DUMP.replace("   0x3 LB", step + "   0x3 LB")
    assert bundles.count(dump, steps=4) == bundles.count(DUMP, steps=4) + 2 + 4 * 3


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def calls(batch: int) -> list[bundles.Call]:
    qkv, x = f"bf16[{batch},256,384]", f"bf16[{batch},256,128]"
    return [
        (f"attention_forward_b{batch}_t256_h2x64_k250", (qkv,)),
        (f"attention_backward_b{batch}_t256_h2x64_k250", (qkv, x, x, f"f32[{batch},1,8,256]")),
        (f"add_norm_forward_b{batch}_t256_d128", (x, x, "f32[1,128]", "f32[1,128]")),
    ]


def test_kernels_of_others_have_none(cache):
    assert bundles.cycles("splash_mha_fwd", ["bf16[8,1024,64]"], "v5e") == 0
    assert bundles.cycles_of([("attention_forward_b2_of_another", ("bf16[2,8,384]",))], "v5e") == {}
    assert not list(cache.rglob("*.json"))


def test_without_the_compiler_there_are_none(cache, monkeypatch):
    monkeypatch.setattr(bundles.importlib.util, "find_spec", lambda name: None)
    assert bundles.cycles_of(calls(8), "v5e") == {}


@pytest.mark.full
def test_cycles_grow_with_the_batch(cache, monkeypatch):
    """And the second time they are read, not compiled."""
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")
    few, many = calls(8), calls(16)
    found = bundles.cycles_of(few + many, "v5e")
    assert list(found) == few + many
    for a, b in zip(few, many):
        assert 1.8 * found[a] < found[b] < 2.1 * found[a]
    # The scores alone: 8 images, 2 heads, 256 rows by two tiles of 128 columns, over four matrix units.
    assert found[few[0]] > 8 * 2 * 256 * 2 / 4
    assert found[few[1]] > 1.5 * found[few[0]]
    monkeypatch.setattr(bundles, "_in_another_process", lambda *_: pytest.fail("compiled again"))
    assert bundles.cycles(*few[0], "v5e") == found[few[0]]
