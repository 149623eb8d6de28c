"""Output for people, in a terminal and in notebooks."""

import sys
from types import SimpleNamespace

import pytest

from imagenette_zoo.errors import UserError
from imagenette_zoo.inference.predict import Prediction, describe
from imagenette_zoo.report.page import escape_markdown
from imagenette_zoo.utils.console import Console, headed, html_table, printable, rounded, table
from imagenette_zoo.utils.signals import Stopped


def test_numbers_to_read_are_rounded_half_up() -> None:
    assert [rounded(value, 1) for value in (3.05, 3.15, 2.675, -3.05, 0.04, -0.04)] == [
        '3.1', '3.2', '2.7', '−3.1', '0.0', '0.0'
    ]  # fmt: skip
    assert [rounded(value, 0, '+') for value in (1234.5, -0.5, 0.0)] == ['+1,235', '−1', '+0']


def test_a_table_of_html_has_no_markup_of_others() -> None:
    assert html_table([('run', 'top-1 %'), ('<script>&', '90')]) == (
        '<table><tr><th>run</th><th>top-1 %</th></tr><tr><td>&lt;script&gt;&amp;</td><td>90</td></tr></table>'
    )


FORGED = 'tench\x1b[2J\nerror: forged'


@pytest.mark.parametrize(
    'text',
    [
        table([('class', 'top-1 %'), (FORGED, '90')]),
        html_table([('class', 'top-1 %'), (FORGED, '90')]),
        describe(Prediction(f'{FORGED}.jpg', [(FORGED, 0.9)])),
        str(UserError(f'class {FORGED!s} is empty')),
        escape_markdown(FORGED),
        printable({FORGED: [FORGED]}),
    ],
    ids=['table', 'html', 'prediction', 'error', 'markdown', 'json'],
)
def test_a_name_clears_no_screen_and_forges_no_line(text: object) -> None:
    assert '\x1b' not in str(text)
    assert '\nerror' not in str(text)
    assert 'error: forged' in str(text)


def test_bars_are_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not Console().live
    monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=object))
    assert (Console().live, Console(quiet=True).live) == (True, False)
    console = Console(bars_only=True)
    console.line('a line')
    with console.progress('epoch', 2):
        pass
    output = capsys.readouterr()
    assert output.out == ''
    assert 'epoch   0%' in output.err


def test_ipython_shows_one_line() -> None:
    assert UserError('no such run')._render_traceback_() == ['error: no such run']
    stopped = Stopped(2)
    assert stopped._render_traceback_() == ['interrupted']
    stopped.message = 'go on'
    assert stopped._render_traceback_() == ['go on']


def test_a_title_that_ends_a_sentence_gets_no_colon() -> None:
    assert headed('Does it help?') == 'Does it help?'
    assert headed('Rates') == 'Rates:'


def test_nothing_is_said_to_be_left_after_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress('epoch 1', 2, log_interval=1) as progress:
        progress.advance(8)
        progress.advance(8)
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith(' left')
    assert 'left' not in last
