"""Jobs of several processes, none of which outlives its test."""

import pytest

from tests.multi.jobs import Job


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """`launch(count, *command, devices=2)` starts a job."""
    jobs = []

    def start(count: int, *command: str, **options) -> Job:
        jobs.append(Job(tmp_path_factory.mktemp("job"), count, *command, **options))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
