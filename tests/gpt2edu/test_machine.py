from gpt2edu.machine import Gpu, describe_machine, parse_gpu_table

TABLE = """\
0, GPU-aaaa-1, NVIDIA A100-SXM4-80GB, 81920, 8.0, 535.104.05
1, GPU-bbbb-2, NVIDIA A100-SXM4-80GB, 81920, 8.0, 535.104.05
2, GPU-cccc-3, Tesla T4, 15360, 7.5, 535.104.05
"""


def test_table_of_gpus():
    gpus, driver = parse_gpu_table(TABLE, visible=None)
    assert driver == "535.104.05"
    assert gpus[0] == Gpu("NVIDIA A100-SXM4-80GB", 85_899_345_920, (8, 0))
    assert [gpu.compute_capability for gpu in gpus] == [(8, 0), (8, 0), (7, 5)]


def test_visible_devices_by_index_and_uuid():
    assert [gpu.name for gpu in parse_gpu_table(TABLE, "2,0")[0]] == ["Tesla T4", "NVIDIA A100-SXM4-80GB"]
    assert len(parse_gpu_table(TABLE, "GPU-bbbb")[0]) == 1
    assert parse_gpu_table(TABLE, "") == ((), None)


def test_an_error_message_is_not_a_gpu():
    assert parse_gpu_table("NVIDIA-SMI has failed because it couldn't communicate", None) == ((), None)


def test_this_machine():
    machine = describe_machine()
    assert machine.n_cores >= 1 and machine.memory_bytes > 2**28
    assert machine.title
