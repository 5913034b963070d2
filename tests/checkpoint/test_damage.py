"""Every damage to the last step: one line that says so, and the step before it."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.small_runs import META, STACKS, assert_identical, make_items, shapes
from vlm_jax.checkpoint import Store, load_params
from vlm_jax.checkpoint import folder as disk
from vlm_jax.errors import Fault, UserError

# Reads that Orbax abandons must not speak up later either.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("three")
    with Store(workdir, stacks=STACKS) as store:
        for step in (1, 2, 3):
            store.save(step, make_items(step), META)
    return workdir


@pytest.fixture
def workdir(three_steps, tmp_path) -> Path:
    return Path(shutil.copytree(three_steps, tmp_path / "run"))


def step_folder(workdir: Path, step: int = 3) -> Path:
    return workdir / "checkpoints" / str(step)


def data_file(folder: Path, item: str = "params") -> Path:
    """The largest file that holds arrays."""
    return max((folder / item).glob("ocdbt.process_*/d/*"), key=lambda path: path.stat().st_size)


def rewrite(path: Path, change) -> None:
    path.write_bytes(bytes(change(bytearray(path.read_bytes()))))


def flip(position: float, item: str = "params"):
    def damage(folder: Path):
        def change(raw):
            raw[int(position * len(raw))] ^= 0x10
            return raw

        rewrite(data_file(folder, item), change)

    return damage


def flips_everywhere(folder: Path):
    """A bit in every hundred bytes of every file that holds arrays of the parameters."""

    def change(raw):
        raw[::100] = bytes(byte ^ 0x10 for byte in raw[::100])
        return raw

    for path in (folder / "params").glob("**/d/*"):
        rewrite(path, change)


def truncate(part: float):
    return lambda folder: rewrite(data_file(folder), lambda raw: raw[: int(part * len(raw))])


def zero_range(folder: Path):
    rewrite(data_file(folder), lambda raw: raw[: len(raw) // 3] + bytearray(len(raw) // 3) + raw[2 * (len(raw) // 3) :])


def edit_meta(change):
    def damage(folder: Path):
        path = folder / "meta" / "metadata"
        path.write_text(change(path.read_text()))

    return damage


def swap_arrays_of_one_shape(folder: Path):
    """Two arrays whose fingerprints are exchanged: each is good, but in the other's place."""
    path = folder / "meta" / "metadata"
    meta = json.loads(path.read_text())
    marks = meta["fingerprints"]
    a, b = (f"params/image/blocks/{layer}/mlp/kernel" for layer in ("00", "01"))
    marks[a], marks[b] = marks[b], marks[a]
    from vlm_jax.checkpoint.folder import seal

    path.write_text(json.dumps(seal({key: value for key, value in meta.items() if key != "checksum"})))


def replaced_by(folder: Path, other: Path):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def empty_folder(folder: Path):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "bit flipped near the start": flip(0.2),
    "bit flipped in the middle": flip(0.5),
    "bit flipped near the end": flip(0.8),
    "bits flipped everywhere": flips_everywhere,
    "bit flipped in the optimizer": flip(0.5, "opt"),
    "bit flipped in the average": flip(0.5, "ema"),
    "half a data file": truncate(0.5),
    "nine tenths of a data file": truncate(0.9),
    "empty data file": truncate(0.0),
    "data file deleted": lambda folder: data_file(folder).unlink(),
    "range of zeros": zero_range,
    "manifest cut": lambda folder: rewrite(folder / "params" / "manifest.ocdbt", lambda raw: raw[:20]),
    "manifest deleted": lambda folder: (folder / "params" / "manifest.ocdbt").unlink(),
    "names of arrays emptied": lambda folder: (folder / "params" / "_METADATA").write_text(""),
    "item deleted": lambda folder: shutil.rmtree(folder / "opt"),
    "item emptied": lambda folder: empty_folder(folder / "ema"),
    "meta deleted": lambda folder: shutil.rmtree(folder / "meta"),
    "meta empty": edit_meta(lambda text: ""),
    "meta cut": edit_meta(lambda text: text[:-30]),
    "meta of another kind": edit_meta(lambda text: "[1, 2]"),
    "digit of the data state changed": edit_meta(lambda text: text.replace('"next_index": 96', '"next_index": 97')),
    "arrays exchanged": swap_arrays_of_one_shape,
    "another step under its name": lambda folder: replaced_by(folder, folder.with_name("1")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_one_line_and_the_step_before(workdir, damage, capfd):
    damage(step_folder(workdir))
    lines = []
    with Store(workdir, stacks=STACKS, warn=lines.append) as store:
        step, items, meta = store.restore_latest(shapes(make_items()))
    assert step == 2 and meta["step"] == 2
    assert_identical(items, make_items(2))
    assert len(lines) == 1 and "checkpoint 3 is damaged" in lines[0] and "\n" not in lines[0] and len(lines[0]) < 200
    assert capfd.readouterr() == ("", "")
    assert step_folder(workdir).exists()  # restoring changes nothing on disk


@pytest.mark.parametrize("damage", ["bit flipped in the middle", "meta deleted", "item deleted"])
def test_training_goes_on_and_saves_at_that_step_again(workdir, damage):
    DAMAGE[damage](step_folder(workdir))
    with Store(workdir, stacks=STACKS, warn=[].append) as store:
        store.restore_latest(shapes(make_items()))
        store.save(3, make_items(33), META)
    assert step_folder(workdir).with_name("3.damaged").is_dir()
    step, items, _ = Store(workdir, stacks=STACKS, warn=pytest.fail).restore_latest(shapes(make_items()))
    assert step == 3
    assert_identical(items, make_items(33))

    flip(0.5)(step_folder(workdir))  # and once more
    with Store(workdir, stacks=STACKS, warn=[].append) as store:
        store.restore_latest(shapes(make_items()))
        store.save(3, make_items(34), META)
    assert step_folder(workdir).with_name("3.damaged.2").is_dir()


def test_folders_of_others_are_passed_over_and_left_alone(workdir):
    """Also where they are named as steps are; only one that lies in the way of a save is renamed."""
    for stray in ("4", "7", "notes", "100", "003", "\uff13"):
        (workdir / "checkpoints" / stray).mkdir()
    (workdir / "checkpoints" / "100" / "mine.txt").write_text("mine")
    with Store(workdir, stacks=STACKS, keep=2, warn=pytest.fail) as store:
        assert store.restore_latest(shapes(make_items()))[0] == 3
        store.save(4, make_items(4), META)
        assert store.restore_latest(shapes(make_items()))[0] == 4
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert left == {"3", "4", "4.damaged", "7", "notes", "100", "003", "\uff13"}


def test_a_folder_without_any_checkpoint_of_ours_is_a_fresh_start(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert Store(tmp_path, stacks=STACKS, warn=pytest.fail).restore_latest(shapes(make_items())) is None


def test_two_steps_back(workdir):
    flip(0.5)(step_folder(workdir, 3))
    shutil.rmtree(step_folder(workdir, 2) / "meta")
    lines = []
    step, items, _ = Store(workdir, stacks=STACKS, warn=lines.append).restore_latest(shapes(make_items()))
    assert step == 1 and len(lines) == 2
    assert_identical(items, make_items(1))


def test_no_good_step_is_never_a_start_from_scratch(workdir):
    for step in (1, 2, 3):
        flip(0.5)(step_folder(workdir, step))
    with pytest.raises(UserError, match="all 3 checkpoints are damaged"):
        Store(workdir, stacks=STACKS, warn=[].append).restore_latest(shapes(make_items()))
    with pytest.raises(UserError, match="all 3 checkpoints are damaged"):
        load_params(workdir, warn=[].append)
    assert all(step_folder(workdir, step).is_dir() for step in (1, 2, 3))


@pytest.mark.parametrize("what", ["meta", "arrays"])
def test_what_the_system_does_not_let_be_read_is_no_damage(workdir, monkeypatch, what):
    """It is tried again; where it stays so nothing is passed over, and the next save renames nothing."""
    import orbax.checkpoint as ocp

    monkeypatch.setattr(disk, "PAUSES", (0.0, 0.0))
    holder, name = (Path, "read_bytes") if what == "meta" else (ocp.PyTreeCheckpointHandler, "restore")
    trouble = (
        OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        if what == "meta"
        else ValueError('UNKNOWN: Error opening "params": [OS error 24: EMFILE Too many open files]')
    )
    reads, read = [], getattr(holder, name)

    def hindered(times):
        def at_first(*arguments, **named):
            reads.append(1)
            if len(reads) <= times:
                raise trouble
            return read(*arguments, **named)

        return at_first

    monkeypatch.setattr(holder, name, hindered(2))
    with Store(workdir, stacks=STACKS, warn=pytest.fail) as store:
        assert store.restore_latest(shapes(make_items()))[0] == 3 and len(reads) > 2
        reads.clear()
        monkeypatch.setattr(holder, name, hindered(999))
        why = "Stale file handle" if what == "meta" else "Too many open files"
        with pytest.raises(Fault, match=rf"/3.* cannot be read \({why}\)") as raised:
            store.restore_latest(shapes(make_items()))
    assert raised.value.code == 1 and len(reads) == 3


def test_out_of_memory_is_no_damage(workdir, monkeypatch):
    import orbax.checkpoint as ocp

    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", exhausted)
    with pytest.raises(MemoryError):
        Store(workdir, stacks=STACKS, warn=pytest.fail).restore_latest(shapes(make_items()))
