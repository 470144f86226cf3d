"""The process that is killed: one stage of one shard, through a real Dagster run."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import uuid
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

_WATCHED = frozenset(
    {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
    | {"shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp", "fcntl.flock"}
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def watch_files(folder: str, die_at: int | None) -> list[int]:
    """Count this process' changes of files under `folder`; kill it before change `die_at`.

    Uses Python's audit events, which do not include the changes that LanceDB makes in Rust. Reads
    are not counted: an export reads many files for each that it writes.
    """
    count = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _WATCHED or (event == "open" and not arguments[2] & _WRITING):
            return
        path = arguments[0] if arguments else ""
        if event != "fcntl.flock" and not (isinstance(path, str) and path.startswith(folder)):
            path = os.fspath(path) if isinstance(path, os.PathLike) else path
            if not (isinstance(path, str) and path.startswith(folder)):
                return
        count[0] += 1
        if count[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def execute(values: Mapping[str, Any], asset: str, shard: str) -> None:
    """Materialize one asset with its checks. Raises RuntimeError if the run fails."""
    import dagster as dg

    from entropylong_assets.orchestration.build import build_definitions
    from entropylong_assets.orchestration.errors import plain_errors
    from entropylong_assets.orchestration.launcher import process_tags
    from entropylong_assets.orchestration.local_run import open_instance, register_shards
    from entropylong_assets.project import make_project
    from entropylong_assets.storage.tables import WHOLE
    from entropylong_assets_tests.stage_names import path_of

    project, run_id = make_project(values), str(uuid.uuid4())
    with open_instance() as instance:
        if asset == "scan":
            with plain_errors():
                register_shards(project.corpus, instance)
            return
        done = (
            build_definitions(project)
            .get_repository_def()
            .get_job("__ASSET_JOB")
            .execute_in_process(
                instance=instance,
                run_id=run_id,
                partition_key=None if shard == WHOLE else shard,
                asset_selection=[dg.AssetKey(path_of(asset))],
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags=process_tags(run_id, os.getpid()),
                raise_on_error=False,
            )
        )
        if not done.success:
            failure = next(e for e in done.all_events if e.is_step_failure).step_failure_data
            data, error = failure.user_failure_data, failure.error
            raise RuntimeError(data.description if data else error.message if error else "?")
        failed = [
            e.check_name for e in done.get_asset_check_evaluations() if e.blocking and not e.passed
        ]
        if failed:
            raise RuntimeError(f"{asset}, {shard}: checks failed: {failed}")


def give_up_rights() -> None:
    """Make file permissions apply to this process, even if its user is root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call; this process
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice 32 bits
    assert libc.capget(header, data) == 0
    for i in (0, 1):
        data[i] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


def run_stage(
    values: Mapping[str, Any],
    home: str,
    asset: str,
    shard: str,
    pipe: Connection,
    die_at: int | None = None,
    *,
    pauses: bool = True,
    rights: bool = True,
) -> None:
    """Target of a process. Sends "started", then ("done", file operations) or ("failed", message).

    pauses: pause between the attempts of a failed step. rights: keep root's right to ignore file
    permissions.
    """
    os.setsid()
    os.environ["DAGSTER_HOME"] = home
    os.chdir(home)
    with open(f"{home}/output.txt", "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if not rights:
        give_up_rights()
    if not pauses:
        import dagster as dg

        from entropylong_assets.orchestration import assets

        assets.RETRIES = dg.RetryPolicy(max_retries=assets.RETRIES.max_retries)
    count = watch_files(str(values["data_uri"]), die_at)
    with contextlib.suppress(BrokenPipeError):
        pipe.send("started")
        try:
            execute(values, asset, shard)
        except BaseException as error:
            pipe.send(("failed", getattr(error, "description", None) or str(error)))
            raise
        pipe.send(("done", count[0]))


def threads_of_forkserver(pipe: Connection) -> None:
    """Target of a process. Sends the number of threads of its parent, the forkserver."""
    with open(f"/proc/{os.getppid()}/status") as status:
        pipe.send(next(int(line.split()[1]) for line in status if line.startswith("Threads:")))


if __name__ == "__main__":
    _, _values, _asset, _shard = sys.argv
    execute(json.loads(_values), _asset, _shard)
