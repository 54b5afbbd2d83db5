"""A mendable error is one line and an exit code; anything else keeps its traceback."""

import errno

import pytest

from gpt2edu.errors import Gpt2EduError, UsageError, disk_full_message, run_main


def run(main):
    with pytest.raises(SystemExit) as exit_info:
        run_main(main)
    return exit_info.value.code


def raising(problem):
    def main(argv):
        raise problem

    return main


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3)])
def test_the_exit_code_is_what_main_returns(result, code):
    assert run(lambda argv: result) == code


@pytest.mark.parametrize(("problem", "code"), [(Gpt2EduError("a.bin is cut short"), 1), (UsageError("-b is 0"), 2)])
def test_mendable_errors_print_one_line(problem, code, capsys):
    assert run(raising(problem)) == code
    captured = capsys.readouterr()
    assert captured.err == f"error: {problem}\n"
    assert captured.out == ""


def test_full_disk_names_the_file(capsys):
    assert run(raising(OSError(errno.ENOSPC, "No space left on device", "model.bin"))) == 1
    assert capsys.readouterr().err == f"error: {disk_full_message('model.bin')}\n"
    assert "model.bin" in disk_full_message("model.bin")
    assert "None" not in disk_full_message(None)


def test_other_os_errors_keep_their_traceback():
    with pytest.raises(PermissionError):
        run_main(raising(PermissionError(errno.EACCES, "Permission denied", "x")))


def test_interrupt_is_130(capsys):
    assert run(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_defects_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(raising(ZeroDivisionError()))
