"""Mistakes cost nothing: each is one line before anything is written or started."""

import pytest

from tests.launch.cases import CASES, CLOUD, GOOGLE, IMAGE, RUN, WHEEL, rendered
from tests.launch.stand_ins import environment, stand_in
from vlm_jax.launch.command import INSTALL, main, parse
from vlm_jax.launch.targets import TARGETS

GKE = ["gke", "--topology=v6e:16x16", IMAGE, "--bucket=my-bucket"]
QUEUED = ["queued", "--topology=v5e:4x4", "--zone=us-west4-a", *GOOGLE]
SKY = ["skypilot", "--topology=h100:8", "--bucket=my-bucket"]

WRONG = {
    "target": (["gkee", *CLOUD], "did you mean 'gke'?"),
    "flag of the launch": ([*GKE, "--quue=a", *CLOUD], "did you mean '--queue'?"),
    "flag of the run": ([*GKE, "--wrkdir=a", *RUN], "did you mean '--workdir'?"),
    "flag of another target": ([*GKE, "--zone=a", *CLOUD], "unknown argument '--zone=a'"),
    "missing flags": (["queued", *CLOUD], "queued needs --topology, --project, --zone, --bucket."),
    "no number": ([*GKE, "--grace=long", *CLOUD], "invalid int value: 'long'"),
    "recipe": ([*GKE, "--config=siglip_b61", "--workdir=/gcs/a"], "siglip_b16"),
    "no recipe": ([*GKE, "--workdir=/gcs/a"], "--config=NAME is missing"),
    "key": ([*GKE, *CLOUD, "--config.batch_sise=8"], "batch_size"),
    "type": ([*GKE, *CLOUD, "--config.batch_size=many"], "config.batch_size"),
    "bind": ([*GKE, *CLOUD, "--bind=ViT.dept=3"], "depth"),
    "batch": ([*GKE, *CLOUD, "--config.batch_size=1000"], "not divisible by the 256 devices of v6e:16x16"),
    "mesh": ([*GKE, *CLOUD, "--config.mesh.fsdp=3"], "does not make the 256 device(s) of v6e:16x16"),
    "workdir elsewhere": ([*GKE, *RUN, "--workdir=workdirs/a"], "is lost with the machine"),
    "workdir in a bucket": ([*GKE, *RUN, "--workdir=gs://my-bucket/a"], "the bucket is mounted at /gcs"),
    "no workdir": ([*GKE, *RUN], "--workdir is missing"),
    "bucket": (["gke", "--topology=v6e:4x4", IMAGE, "--bucket=gs://b/folder", *CLOUD], "without a folder in it"),
    "name": ([*GKE, "--name=Two Words", *CLOUD], "clouds take at most 40"),
    "neither": ([*QUEUED, *CLOUD], "give one of --package"),
    "both": ([*QUEUED, IMAGE, WHEEL, *CLOUD], "give one of --package"),
    "unpinned": ([*QUEUED, "--package=vlm_jax[tpu]", *CLOUD], "is not pinned"),
    "unpinned git": ([*SKY, "--package=vlm_jax @ git+https://git@example.com/vlm_jax", *CLOUD], "is not pinned"),
    "GPU on a TPU target": (["gke", "--topology=h100:8", IMAGE, "--bucket=my-bucket", *CLOUD], "for GPUs: slurm"),
    "TPU on slurm": (["slurm", "--topology=v5e:4x4", *RUN], "slurm runs GPU nodes"),
    "sbatch": (["slurm", "--topology=h100:8", "--sbatch=gpu", *RUN], "--sbatch takes one option"),
    "v5e in Compute Engine": (
        ["gce", "--topology=v5e:4x4", "--zone=a-b-c", WHEEL, *GOOGLE, *CLOUD],
        "Compute Engine has TPUs v5p and v6e",
    ),
    "slices in Compute Engine": (
        ["gce", "--topology=2*v6e:4x4", "--zone=a-b-c", WHEEL, *GOOGLE, *CLOUD],
        "several: gke or queued",
    ),
    "slices in SkyPilot": (["skypilot", "--topology=2*v6e:4x4", "--bucket=my-bucket", WHEEL, *CLOUD], "several: gke"),
    "TPU here": (["local", "--topology=v5e:4x4", *RUN], "is not this machine"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line(mistake, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv, says = WRONG[mistake]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1, captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gke", "gce", "queued", "slurm", "skypilot_gpu"])
def test_a_missing_tool_says_how_to_install_it(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(CASES[name]) == 2
    (tool,) = rendered(CASES[name]).tools
    assert f"error: {tool} is not installed: {INSTALL[tool]}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [0, 3])
def test_start_writes_shows_and_runs(code, capfd, tmp_path, monkeypatch):
    stand_in(tmp_path, "kubectl", f'printf "<%s>" "$@"; exit {code}')
    monkeypatch.setenv("PATH", environment(tmp_path)["PATH"])
    monkeypatch.chdir(tmp_path)
    assert main(CASES["gke"]) == code
    out, err = capfd.readouterr()
    path = "launches/siglip-b16-full/jobset.yaml"
    assert (tmp_path / path).read_text() == rendered(CASES["gke"]).files["jobset.yaml"]
    assert f"==> {path} <==\n# siglip-b16-full on v6e:16x16" in out
    assert out.endswith(f"<apply><-f><{path}>")
    assert err == (f"exit code 3: kubectl apply -f {path}\n" if code else "")


def test_a_config_of_this_machine_is_pointed_out(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text("from vlm_jax.configs.siglip_b16 import get_config as get_config\n")
    launch = rendered([*GKE, f"--config={recipe}", "--workdir=/gcs/a"])
    assert any(str(recipe) in note for note in launch.notes)
    assert not any(note.startswith("note:") for note in rendered(CASES["gke"]).notes)


def test_a_value_is_never_a_flag_of_the_launch():
    words = ["--bind", "ViT.depth=3", "--config.tokenizer", "--name=x"]
    _, _, job = parse([*GKE, *words, *CLOUD])
    assert job.name == "siglip-b16-full"
    assert {"--bind=ViT.depth=3", "--config.tokenizer=--name=x"} <= set(job.arguments)


def test_help_lists_targets_and_flags(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in TARGETS)
    for name in TARGETS:
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert "--topology" in text and "--dry_run" in text and TARGETS[name].__doc__.split(":")[0] in text
