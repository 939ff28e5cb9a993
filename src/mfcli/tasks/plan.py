"""Where the parts of a plan stand, and the check that they are whole."""

from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from mfcli.errors import CheckError, OutputError
from mfcli.inputs.plan import Plan, format_shards, parse_name
from mfcli.outputs.parts import PartCounts, PartFolder
from mfcli.results import Progress, Tally, join_member
from mfcli.store_paths import map_files

_CHECKS = 8
"""Parts of a store that are checked at once, each from a copy on the disk."""


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """Where a job stands.

    Attributes:
        inputs: names in the plan.
        shards: of the plan.
        done: shards whose part exists.
        missing_shards: the others, as `select_shards` takes them.
        ok: pictures in the parts that were classified.
        failed: the other rows.
        changed: pictures whose file had changed since it was planned.
        images_per_s: mean rate of one process; None where no part says how long it took.
    """

    inputs: int
    shards: int
    done: int
    missing_shards: str
    ok: int
    failed: int
    changed: int
    images_per_s: float | None


def get_status(plan: Plan, parts: PartFolder) -> PlanStatus:
    """Return where a job stands, from the names and counts of its parts.

    Raises:
        OutputError: a part without counts cannot be read.
    """
    shards = range(len(plan.sha256))
    done = parts.list_done(len(shards))
    missing = [shard for shard in shards if shard not in done]
    counts = parts.read_counts(sorted(done))
    return PlanStatus(
        inputs=plan.inputs,
        shards=len(shards),
        done=len(counts),
        missing_shards=format_shards(missing),
        ok=sum(count.ok for count in counts),
        failed=sum(count.failed for count in counts),
        changed=sum(count.changed for count in counts),
        images_per_s=_rate(counts),
    )


def _rate(counts: list[PartCounts]) -> float | None:
    timed = [count for count in counts if count.seconds > 0]
    seconds = sum(count.seconds for count in timed)
    return round(sum(count.inputs for count in timed) / seconds, 1) if seconds else None


def finish(plan: Plan, parts: PartFolder, progress: Progress = lambda _: None) -> PlanStatus:
    """Check that every name of a plan has exactly one row, in its place, and mark the folder as complete.

    Args:
        plan: the plan.
        parts: its results.
        progress: told the rows that have been checked, after each part.

    Raises:
        CheckError: parts are missing, or a part has other rows, is of another run, or is damaged.
        NoInputsError: the plan has changed.
        OutputError: the folder cannot be written.
    """
    status = get_status(plan, parts)
    if status.missing_shards:
        raise CheckError(
            f"{status.shards - status.done} of {status.shards} parts are missing",
            f"mf predict plan={plan.folder} output={parts.folder} shards={status.missing_shards}",
        )
    checks = map_files(parts.folder, partial(_check_part, plan, parts), range(status.shards), at_once=_CHECKS)
    for shard, _ in enumerate(checks):
        progress(Tally(min(plan.inputs, (shard + 1) * plan.shard_size), 0, 0, plan.inputs))
    counts = {"inputs": plan.inputs, "ok": status.ok, "failed": status.failed, "changed": status.changed}
    parts.finish({"plan": plan.digest} | counts)
    return status


def _check_part(plan: Plan, parts: PartFolder, shard: int) -> None:
    again = f"delete it, and predict it again: shards={shard}"
    try:
        for number, (name, row) in enumerate(zip_longest(plan.names(shard), parts.names(shard)), start=1):
            found = parse_name(row) if row else None
            if name != found:
                planned, stored = (join_member(*either) if either else "nothing" for either in (name, found))
                raise CheckError(f"row {number} of {parts.path(shard)} is {stored}, and the plan has {planned}", again)
            if row and row["run"] != parts.run:
                raise CheckError(f"row {number} of {parts.path(shard)} belongs to another run", again)
    except OutputError as error:
        raise CheckError(error.message, error.hint or again) from error
