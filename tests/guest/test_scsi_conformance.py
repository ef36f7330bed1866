"""A SCSI disk of ours against libiscsi's conformance tests, run by a guest on its own /dev/sg devices.

docs/scsi-conformance.md says why what is skipped is skipped.
"""

from __future__ import annotations

from pollux_testing import MIB, Polluxd, disk_of

from guest import conformance
from guest.uml import Uml

# The contract: nothing fails, and no fewer really pass.
_TESTS = 215
_PASSES = 160

# With more than one logical block in a physical one the tool asks for the status of one block and compares the answer
# with the number of another. It says the truth about a volume where they are the same.
_OF_EQUAL_BLOCKS = "GetLBAStatus.UnmapSingle"

# One guest, one volume, three controllers: two paths that may write and one that may not; and another volume, with
# blocks of 4096 bytes. MultipathIO comes first: it compares with one block more than it has written, which an unused
# volume answers with zeros.
_SCRIPT = """
    . /lib/guest.sh
    wait_for_disks 4 || exit 1
    paths=
    for dir in /sys/class/scsi_disk/*; do
        sg=/dev/$(ls $dir/device/scsi_generic)
        if [ "$(cat $dir/device/block/*/queue/logical_block_size)" = 4096 ]; then large=$sg
        elif [ "$(cat $dir/device/block/*/ro)" = 1 ]; then locked=$sg
        else paths="$paths $sg"
        fi
    done
    run() {
        echo "@@RUN $*" > /dev/console
        iscsi-test-cu "$@" > /tmp/log 2>&1
        echo "@@STATUS $?" > /dev/console
        sed 's/^/|/' /tmp/log > /dev/console
    }
    run -d -t SCSI.MultipathIO $paths
    run -d -t SCSI.ReadOnly $locked
    run -d -t SCSI ${paths##* }
    run -d -t SCSI.$OF_EQUAL_BLOCKS $large
"""


def test_no_conformance_test_fails_and_enough_really_pass(polluxd: Polluxd) -> None:
    volume = polluxd.create_volume(256 * MIB)
    attachments = [
        polluxd.attach(volume.volume_id, "scsi", client=client, read_only=client == "locked")
        for client in ("first", "second", "locked")
    ]
    large = polluxd.create_volume(256 * MIB, block_bytes=4096)
    attachments.append(polluxd.attach(large.volume_id, "scsi", client="large"))
    disks = [disk_of(attachment) for attachment in attachments]
    variables = {"OF_EQUAL_BLOCKS": _OF_EQUAL_BLOCKS}
    with Uml(_SCRIPT, disks, memory_mb=512, variables=variables, programs=["iscsi-test-cu"]) as guest:
        guest.wait_script(240)
        runs = [conformance.results(_lines(run)) for run in guest.console.text().split("@@RUN ")[1:]]
    assert len(runs) == 4
    # The last run has its one test for itself.
    del runs[2][_OF_EQUAL_BLOCKS]
    assert list(runs[3]) == [_OF_EQUAL_BLOCKS]
    # What one run skips for want of a second path or of write protection, another has run.
    outcomes: dict[str, str] = {}
    for test, outcome in (item for run in runs for item in run.items()):
        outcomes[test] = max(outcome, outcomes.get(test, conformance.SKIPPED), key=conformance.WEIGHT.index)
    tests = {kind: sorted(test for test, outcome in outcomes.items() if outcome == kind) for kind in conformance.WEIGHT}
    print({kind: len(names) for kind, names in tests.items()})
    assert tests[conformance.FAILED] == []
    assert len(outcomes) == _TESTS
    assert len(tests[conformance.PASSED]) >= _PASSES, tests[conformance.SKIPPED]


def _lines(run: str) -> list[str]:
    return [line[1:] for line in run.splitlines() if line.startswith("|")]
