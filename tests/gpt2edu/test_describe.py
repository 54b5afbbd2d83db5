"""The table of settings in llm.c's form."""

from gpt2edu.describe import settings_table


def test_the_settings_table_has_llmcs_form():
    lines = settings_table([[("total batch size", 524288)], [("learning rate (LR)", 6e-4)]]).splitlines()
    assert lines[0] == "+-----------------------+----------------------------------------------------+"
    assert lines[3] == "| total batch size      | 524288                                             |"
    assert lines[5] == "| learning rate (LR)    | 6.000000e-04                                       |"
