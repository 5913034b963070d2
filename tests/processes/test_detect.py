"""Who takes part: by flags, by what launchers leave in the environment, and by a TPU's metadata server."""

import argparse
import http.server
import os
import threading

import pytest

from vlm_jax.errors import UserError
from vlm_jax.processes import Job, asked_for, detect

NOTHING = dict(coordinator=None, num_processes=None, process_id=None, process_timeout=300.0)
SLURM = dict(SLURM_JOB_ID="4097", SLURM_STEP_NODELIST="node[03,07-08]", SLURM_NTASKS="6", SLURM_PROCID="4",
             SLURM_LOCALID="1", SLURM_STEP_NUM_NODES="3")  # fmt: skip
OPEN_MPI = dict(OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", OMPI_COMM_WORLD_SIZE="2",
                OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_RANK="0", OMPI_COMM_WORLD_LOCAL_SIZE="1")  # fmt: skip
METADATA = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "unknown:unknown:127.0.0.1,unknown:unknown:127.0.0.2",
    "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\n",
}


def flags(**given) -> argparse.Namespace:
    return argparse.Namespace(**{**NOTHING, **given})


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """A machine of no cluster, with no answer from anywhere."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JAX_COORD", "CUDA_V")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)


@pytest.fixture
def environment(monkeypatch):
    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def tpu(monkeypatch, environment):
    """A TPU VM whose metadata server is here; what it has is the test's to change."""
    from jax._src.clusters import cloud_tpu_cluster

    metadata = dict(METADATA)

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = metadata.get(self.path.rpartition("/")[2])
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    environment(GCE_METADATA_IP=f"127.0.0.1:{server.server_address[1]}")
    yield metadata
    server.shutdown()


def test_by_flags():
    assert asked_for(flags()) is None
    assert asked_for(flags(num_processes=1)).count == 1
    given = flags(coordinator="host:1234", num_processes=4, process_id=3)
    assert asked_for(given) == Job("flags", "host:1234", 4, 3, ())


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(coordinator="host:1"), "--num_processes and --process_id missing"),
        (dict(num_processes=2, process_id=0), "--coordinator missing; a process needs --coordinator=HOST:PORT"),
        (dict(coordinator="host", num_processes=2, process_id=0), "--coordinator=host: give HOST:PORT"),
        (dict(coordinator="host:99999", num_processes=2, process_id=0), "give HOST:PORT"),
        (dict(coordinator="host:1", num_processes=2, process_id=2), "--process_id=2 is not one of 0 to N-1"),
        (dict(process_timeout=0.0), "must be at least 1"),
    ],
)
def test_flags_that_do_not_fit(given, says):
    with pytest.raises(UserError, match=says):
        asked_for(flags(**given))


def test_a_laptop_is_by_itself():
    assert detect(1) is None


def test_slurm(environment):
    environment(**SLURM)
    assert detect(1) == Job("Slurm", "node03:61441", 6, 4, (1,))


def test_slurm_with_one_task_a_node_has_all_gpus(environment):
    environment(**SLURM | {"SLURM_NTASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"})
    assert detect(1).local_devices == ()


def test_a_process_that_sees_one_gpu_takes_it(environment):
    environment(**SLURM, CUDA_VISIBLE_DEVICES="3")
    assert detect(1).local_devices == ()


def test_named_devices_are_left_to_jax(environment):
    environment(**SLURM, JAX_LOCAL_DEVICE_IDS="0,1")
    assert detect(1).local_devices is None
    assert asked_for(flags(coordinator="host:1", num_processes=2, process_id=0)).local_devices is None


def test_slurm_without_srun_is_by_itself(environment, capsys):
    environment(SLURM_JOB_ID="1", SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_LOCALID="0")
    assert detect(1) is None
    assert capsys.readouterr().err == "a Slurm job of 4 tasks, but not under srun: one process\n"


def test_slurm_of_one_task_is_by_itself(environment):
    environment(**SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert detect(1) is None


def test_open_mpi(environment):
    environment(**OPEN_MPI)
    found = detect(1)
    assert (found.launcher, found.count, found.index, found.local_devices) == ("Open MPI", 2, 1, ())
    assert found.coordinator.startswith("10.96.0.1:")


@pytest.mark.parametrize("name, rank", [("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")])
def test_a_launcher_that_names_no_first_process(environment, name, rank):
    environment(**{name: "2", rank: "1"})
    with pytest.raises(UserError, match=rf"started 2 processes .*--process_id=\${rank}"):
        detect(1)


def test_a_tpu_pod(tpu):
    assert detect(5) == Job("TPU VM", "127.0.0.1:8482", 2, 1, ())


def test_a_tpu_of_one_host_is_by_itself(tpu):
    tpu |= {"agent-worker-number": "0", "worker-network-endpoints": "unknown:unknown:127.0.0.1"}
    assert detect(5) is None


def test_two_slices_of_tpus(tpu, environment):
    environment(MEGASCALE_NUM_SLICES="2", MEGASCALE_SLICE_ID="1", MEGASCALE_COORDINATOR_ADDRESS="localhost:8080")
    assert detect(5) == Job("TPU VM", "localhost:8482", 4, 3, ())


def test_tpus_on_gke(tpu, environment):
    del tpu["agent-worker-number"]
    environment(TPU_WORKER_HOSTNAMES="localhost,localhost.", TPU_WORKER_ID="1", JAX_COORDINATOR_PORT="1234")
    assert detect(5) == Job("TPU on GKE", "localhost:1234", 2, 1, ())


def test_a_pod_that_belongs_to_no_indexed_job_is_by_itself(environment):
    environment(KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert detect(1) is None


def test_an_environment_that_cannot_be_read(environment):
    environment(**SLURM | {"SLURM_NTASKS": "many"})
    with pytest.raises(UserError, match=r"Slurm was found, but its processes were not .*--num_processes=1"):
        detect(1)
