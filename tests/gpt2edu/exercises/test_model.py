"""Each check of chapter 3 refuses the starter and the likely mistakes; the solutions are tested in the notebook."""

import math

import pytest
import torch

from gpt2edu.exercises import model as exercises


def starter(*arguments):
    raise NotImplementedError


def forgets_biases(V, T, C, L):
    return V * C + T * C + L * 12 * C**2 + 2 * C


def reads_the_padding(logits_P, target, vocab_size):
    return -math.log(torch.softmax(logits_P, dim=0)[target])


def looks_ahead(query_TD, key_TD, value_TD):
    return torch.softmax(query_TD @ key_TD.T / math.sqrt(query_TD.shape[1]), dim=1) @ value_TD


def does_not_divide(query_TD, key_TD, value_TD):
    scores_TT = (query_TD @ key_TD.T).masked_fill(torch.ones(len(query_TD), len(query_TD)).triu(1) > 0, -math.inf)
    return torch.softmax(scores_TT, dim=1) @ value_TD


def writes_padding(model, ids, n):
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-n:]


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (exercises.check_count_parameters, forgets_biases),
        (exercises.check_loss_of_one, reads_the_padding),
        (exercises.check_attend, looks_ahead),
        (exercises.check_attend, does_not_divide),
        (exercises.check_continue_greedily, writes_padding),
    ],
)
def test_starters_and_likely_mistakes_are_refused(check, wrong, capsys):
    assert not check(starter)
    assert "not yet" in capsys.readouterr().out
    assert not check(wrong)
    assert "expected" in capsys.readouterr().out
