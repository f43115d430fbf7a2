"""What a node lets its workers have: memory by control groups and SLURM, room on the disk."""

import inspect
import subprocess
import sys

import psutil
import pytest

from dpipe.blocks.scratch import NODE_VARIABLE, on_this_node
from dpipe.cluster import node, probe
from dpipe.cluster.node import MIB, enforced_nbytes, leaving_at, scratch_room, with_memory

ALL = psutil.virtual_memory().total


def groups(tmp_path, lines, limits):
    for path, limit in limits.items():
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    proc = tmp_path / "cgroup"
    proc.write_text(lines)
    return tmp_path / "root", proc


@pytest.mark.parametrize(
    ("lines", "limits", "found"),
    [
        ("0::/job/step\n", {"job/memory.max": 300 * MIB, "job/step/memory.max": "max"}, 300 * MIB),
        ("0::/job/step\n", {"job/memory.max": 300 * MIB, "job/step/memory.max": 200 * MIB}, 200 * MIB),
        (
            "5:cpu:/a\n4:memory:/a/b\n",
            {"memory/a/memory.limit_in_bytes": 100 * MIB, "memory/a/b/memory.limit_in_bytes": 2**63 - 4096},
            100 * MIB,
        ),
        ("4:memory:/of/the/host\n", {"memory/memory.limit_in_bytes": 50 * MIB}, 50 * MIB),
        ("0::/job\n", {"job/memory.max": "max"}, ALL),
        ("", {}, ALL),
    ],
)
def test_the_lowest_limit_of_all_levels_of_control_groups_counts(tmp_path, lines, limits, found):
    root, proc = groups(tmp_path, lines, limits)
    assert enforced_nbytes({}, root, proc) == found


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"SLURM_MEM_PER_NODE": "300"}, 300 * MIB),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "4"}, 400 * MIB),
        ({"SLURM_MEM_PER_NODE": "0"}, ALL),
        ({"SLURM_MEM_PER_CPU": "100"}, ALL),
    ],
)
def test_what_slurm_gives_a_job_counts(tmp_path, environ, found):
    assert enforced_nbytes(environ, *groups(tmp_path, "", {})) == found


def test_workers_get_no_more_than_the_system_enforces():
    given = ["tls://a:1", "--nworkers", "2", "--memory-limit", "4GiB"]
    assert with_memory(given, 2100 * MIB)[-1] == str(1000 * MIB)
    assert with_memory(given, 2**40)[-1] == str((8 * 1024 - 100) * MIB // 2)
    assert with_memory(["tls://a:1"], 1100 * MIB)[-2:] == ["--memory-limit", str(1000 * MIB)]


def test_workers_leave_by_the_time_of_their_job():
    given = ["tls://a:1", "--lifetime", "540s", "--lifetime-stagger", "20s", "--nanny"]
    rest, end = leaving_at(given, 1000.0)
    assert rest == ["tls://a:1", "--nanny"]
    assert end is not None
    assert 1520 <= end <= 1560
    assert leaving_at(rest, 1000.0) == (rest, None)


def test_scratch_that_cannot_be_used_is_named(tmp_path):
    assert 0 < scratch_room(f"{tmp_path}/new", 2) < scratch_room(f"{tmp_path}/new", 1)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"scratch folder {tmp_path}/file/x on node .* key 'scratch'"):
        scratch_room(f"{tmp_path}/file/x", 1)


@pytest.mark.parametrize("after", [[], ["--dashboard-address", ":0"]])
def test_a_variable_that_a_node_has_not_is_not_taken_for_a_folder(tmp_path, after):
    command = [sys.executable, node.__file__, "tcp://127.0.0.1:1", "--local-directory", *after]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "a variable in it is not set there" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "is not set in jobs there" in probe.scratch(f"{tmp_path}/$DPIPE_NOWHERE")["error"]


def test_scratch_of_a_node_is_where_its_job_says(tmp_path, monkeypatch):
    assert on_this_node("/driver/says") == "/driver/says"
    monkeypatch.setenv(NODE_VARIABLE, str(tmp_path))
    assert on_this_node("/driver/says") == str(tmp_path)
    assert f'"{NODE_VARIABLE}"' in inspect.getsource(node.main)


def test_what_is_copied_to_nodes_does_without_dpipe(tmp_path):
    for module in (node, probe):
        code = f"import runpy, sys; runpy.run_path({module.__file__!r}); assert 'dpipe' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_node_tells_what_it_is_like(tmp_path):
    found = probe.answer(str(tmp_path / "scratch"), "127.0.0.1:1")
    assert found["versions"] == probe.versions()
    assert "lo" in found["interfaces"]
    assert found["scratch"]["error"] == ""
    assert "refused" in found["unreached"]
