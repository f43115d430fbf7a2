"""Specifications of clusters: what they may hold, and what is said of what they may not."""

import socket
import subprocess
import sys

import pytest

import dpipe
from dpipe.cluster.specification import KEYS, QUEUES, clock, seconds
from dpipe.errors import ClusterError, InputError


def written(folder, text):
    path = folder / "there.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read_as_plain_values(tmp_path):
    path = written(
        tmp_path,
        "kind: slurm\nworkers: [1, 8]\ncores: 4\nmemory: 16 GiB\nwalltime: 1:30:00\nqueue: main\naccount: 1234\n"
        "directives: [--exclusive]\nprologue: ['module load python']\nscratch: $TMPDIR\n",
    )
    spec = dpipe.Cluster.read(path)
    assert spec.n_workers == (1, 8)
    assert (spec.memory_nbytes, spec.walltime_s) == (16 * 2**30, 5400)
    assert (spec.account, spec.scratch) == ("1234", "$TMPDIR")
    assert spec == dpipe.Cluster(
        "slurm",
        workers=(1, 8),
        cores=4,
        memory="16 GiB",
        walltime="90 min",
        queue="main",
        account="1234",
        directives=("--exclusive",),
        prologue=["module load python"],
        scratch="$TMPDIR",
        source=str(path),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "kind: slrm\nmemory: 1 GiB",
            "Key 'kind' of .*there.yaml is 'slrm'; it must be one of local, address, slurm",
        ),
        ("kind: slurm", "Key 'memory' of .*there.yaml is missing"),
        ("kind: slurm\nmemory: much", "Key 'memory' of .*'much' is not a size.*[^.].$"),
        ("kind: slurm\nmemory: 1 GiB\ncore: 2", "no key 'core'.*Did you mean 'cores'"),
        (
            "kind: slurm\nmemory: 1 GiB\ncores: 0",
            "Key 'cores' of .* is 0; it must be a whole number, at least 1",
        ),
        ("kind: slurm\nmemory: 1 GiB\nworkers: [8, 1]", "Key 'workers'.*the fewest and the most"),
        (
            "kind: slurm\nmemory: 1 GiB\nwalltime: soon",
            "Key 'walltime' of .* is 'soon'; it must be a duration",
        ),
        ("kind: slurm\nmemory: 1 GiB\nwalltime: 50", "at least 60 s"),
        ("kind: [slurm]\nmemory: 1 GiB", r"Key 'kind' of .* is \['slurm'\]; it must be one of local"),
        ("kind: slurm\nmemory: 16", "Key 'memory' of .* is 16; that is less than 1 MiB; name the unit"),
        (
            "kind: slurm\nmemory: 1 GiB\nscratch: spill/here",
            "Key 'scratch' of .* is 'spill/here'; each node must know where that is: begin with /",
        ),
        ("kind: slurm\nmemory: 1 GiB\nqueue: a b", "Key 'queue' of .* one word"),
        ("kind: slurm\nmemory: 1 GiB\nscratch: $(touch x)", "Key 'scratch' of .* shell commands"),
        ("kind: slurm\nmemory: 1 GiB\ndirectives: --exclusive", "Key 'directives' of .* a list of lines"),
        (
            'kind: slurm\nmemory: 1 GiB\ndirectives: ["a\\nrm -r /"]',
            "Key 'directives' of .* one line of text",
        ),
        (
            "kind: local\nqueue: main",
            "Key 'queue' of .* means nothing for kind 'local', which takes cores, memory",
        ),
        ("kind: address", "Key 'address' of .* is missing"),
        ("kind: address\naddress: tls://a:1", "Key 'ca' of .* is missing"),
        ("kind: address\naddress: tls://a:1\nca: x", "Key 'ca' of .* needs ca, certificate and key together"),
        *(
            (f"kind: address\naddress: '{address}'", "Key 'address' of .* it must be SCHEME://HOST:PORT")
            for address in (
                "10.0.0.5:8786",
                "tcp://10.0.0.5",
                "tcp://:8786",
                "tcp://a:99999",
                "tcp://a:x",
                "tcp://a:²",
                "http://a:1",
                "inproc://a",
            )
        ),
        ("kind: ssh", "Key 'hosts' of .* is missing"),
        ("kind: ssh\nhosts: [-V]", "Key 'hosts' of .* the name of a machine does not begin with -"),
        ('kind: ssh\nhosts: [a]\ndirectives: ["-i \'x"]', "Key 'directives' of .* No closing quotation"),
        ("workers: 1", "Key 'kind' of .*there.yaml is missing"),
        ("- kind", "holds list"),
        ("kind: [", "is not a plain YAML file"),
    ],
)
def test_what_does_not_do_is_named_with_its_key_and_file(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        dpipe.Cluster.read(written(tmp_path, text))


def test_nothing_in_a_file_is_run(tmp_path):
    mark = tmp_path / "mark"
    path = written(tmp_path, f"kind: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(InputError, match="is not a plain YAML file"):
        dpipe.Cluster.read(path)
    assert not mark.exists()


def test_a_name_is_looked_up_where_the_user_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DPIPE_CLUSTERS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.yaml").write_text("kind: local\nworkers: 2\n")
    assert dpipe.Cluster.read("work").n_workers == (2, 2)
    assert dpipe.Cluster.read("local").kind == "local"
    assert dpipe.Cluster.read("tcp://127.0.0.1:8786").address == "tcp://127.0.0.1:8786"
    with pytest.raises(InputError, match=f"There is no cluster specification 'other'.*{tmp_path}"):
        dpipe.Cluster.read("other")


def test_what_would_leave_this_machine_unencrypted_is_refused():
    with (
        pytest.raises(InputError, match=r"not encrypted.*tls: false"),
        dpipe.Cluster("address", address="tcp://192.0.2.1:8786"),
    ):
        pytest.fail("it was started")


@pytest.mark.parametrize("value", ["00:10:00", 600, "10 min", "600", "0-00:10:00", "10m"])
def test_durations_are_read_as_queues_write_them(value):
    assert seconds(value) == 600
    assert clock(seconds(value)) == "00:10:00"


def test_all_queues_take_the_same_keys_but_for_what_some_have_not():
    assert set.intersection(*(set(KEYS[kind]) for kind in QUEUES)) == set.union(
        *(set(KEYS[kind]) for kind in QUEUES)
    ) - {"queue", "resource"}


@pytest.mark.cluster
def test_a_cluster_on_this_machine_is_taken_where_a_client_is(tmp_path):
    import dask.array as da
    from sklearn.preprocessing import StandardScaler

    X = da.random.default_rng(0).normal(size=(1000, 3), chunks=(100, 3))
    cluster = dpipe.Cluster("local", workers=1, cores=2, threads=True)
    assert dpipe.plan(StandardScaler(), X, client=cluster).threads == 2
    fitted = dpipe.fit(StandardScaler(), X, client=cluster)
    with cluster as client:
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        ticks = client.run(lambda dask_worker: dask_worker._tick_interval)  # Dask's default: 0.02 s
        assert list(ticks.values()) == [0.5]
        again = dpipe.fit(StandardScaler(), X, client=cluster)
    assert fitted.mean_.tolist() == again.mean_.tolist()
    assert cluster.started is None


def test_more_processes_than_fit_cannot_be_asked_for():
    with (
        pytest.raises(
            InputError, match=r"Key 'workers' asks for 100,000 processes; .* each takes 272,629,760"
        ),
        dpipe.Cluster("local", workers=100_000),
    ):
        pytest.fail("it was started")


@pytest.mark.parametrize("listens", [False, True])
def test_where_no_scheduler_answers_is_told_with_what_was_tried(listens):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        said = "it was tried for 5 s: .*" + ("is no scheduler" if listens else "refused")
        with pytest.raises(ClusterError, match=f"No scheduler answers at {address}; {said}"):
            dpipe.Cluster("address", address=address).__enter__()


@pytest.mark.parametrize(
    ("text", "says"), [(None, "'ca' is .*No such file"), ("no PEM", "no PEM files that belong together")]
)
def test_certificates_that_cannot_be_used_are_named(tmp_path, text, says):
    path = tmp_path / "file.pem"
    if text is not None:
        path.write_text(text)
    named = dict.fromkeys(("ca", "certificate", "key"), str(path))
    with (
        pytest.raises(InputError, match=says),
        dpipe.Cluster("address", address="tls://127.0.0.1:9", **named),
    ):
        pytest.fail("it was started")


@pytest.mark.parametrize("host", ["localhost.example.com", "127.example.com", "10.0.0.127"])
def test_only_addresses_of_this_machine_need_no_encryption(host):
    with (
        pytest.raises(InputError, match="is not encrypted, and leaves this machine"),
        dpipe.Cluster("address", address=f"tcp://{host}:8786"),
    ):
        pytest.fail("it was started")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_addresses_of_this_machine_are_called(host):
    with (
        pytest.raises(ClusterError, match="No scheduler answers at"),
        dpipe.Cluster("address", address=f"tcp://{host}:1"),
    ):
        pytest.fail("it was started")


@pytest.mark.cluster
def test_the_address_of_a_worker_is_told_from_that_of_a_scheduler():
    with dpipe.Cluster("local", workers=1, cores=1) as client:
        (worker,) = client.run(lambda dask_worker: dask_worker.address)
        with (
            pytest.raises(ClusterError, match=f"What answers at {worker} is a Worker, not a scheduler"),
            dpipe.Cluster("address", address=worker),
        ):
            pytest.fail("it was started")
        with dpipe.Cluster("address", address=client.scheduler.address) as other:
            assert other.scheduler_info()["id"] == client.scheduler_info()["id"]


@pytest.mark.cluster
def test_a_script_that_its_workers_would_start_over_is_told_what_to_change(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import dpipe\nwith dpipe.Cluster('local', workers=1) as client:\n    pass\n")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert "ClusterError: Workers cannot be started" in last
    assert "if __name__ == '__main__':" in last


def test_more_memory_than_there_is_cannot_be_asked_for():
    with (
        pytest.raises(InputError, match="Key 'memory' asks for 1 x .* lets them have"),
        dpipe.Cluster("local", memory="900 TiB"),
    ):
        pytest.fail("it was started")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            dpipe.Cluster("slurm", memory="1 GiB", interface="nosuch0"),
            "Key 'interface' is 'nosuch0': this machine.* has no such network interface; it has .*lo",
        ),
        (
            dpipe.Cluster("local", scratch="/proc/none"),
            "Key 'scratch' is /proc/none: that folder cannot be made",
        ),
        (
            dpipe.Cluster("local", scratch="$NOT_SET_HERE/spill"),
            "Key 'scratch' is .NOT_SET_HERE/spill: a variable in it is not set",
        ),
    ],
)
def test_what_this_machine_has_not_is_named_before_anything_starts(spec, says):
    with pytest.raises(InputError, match=says), spec:
        pytest.fail("it was started")
