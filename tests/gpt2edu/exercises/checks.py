"""What the tests of all chapters share: right answers pass, mistakes are refused, a starter is not yet an answer."""

import pytest


def cases_of_checks(exercises, right, wrong, given=()):
    """Return the tests of a chapter's checks, a class for pytest to collect.

    `right` and `wrong` are pairs of an exercise's name and an answer. The starters of those in `given` are no functions
    that raise NotImplementedError, and are not tested.
    """

    class TestChecks:
        @pytest.mark.parametrize(("name", "answer"), right)
        def test_right_answers_pass(self, name, answer, capsys):
            assert getattr(exercises, f"check_{name}")(answer)
            assert "✓" in capsys.readouterr().out

        @pytest.mark.parametrize(("name", "answer"), wrong)
        def test_mistakes_are_refused(self, name, answer, capsys):
            assert not getattr(exercises, f"check_{name}")(answer)
            assert "✗" in capsys.readouterr().out

        @pytest.mark.parametrize("name", [name for name, _ in right if name not in given])
        def test_a_starter_is_not_yet(self, name, capsys):
            def starter(*_arguments):
                raise NotImplementedError

            assert not getattr(exercises, f"check_{name}")(starter)
            assert "not yet" in capsys.readouterr().out

    return TestChecks
