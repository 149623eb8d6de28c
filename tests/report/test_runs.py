"""The table of all runs in a report."""

import json
from pathlib import Path

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.report.page import write_report
from imagenette_zoo.report.studies import summary, summary_rows
from tests.report.records import make_record, make_records, text_of


def test_without_analyses_the_rest_is_told(tmp_path: Path) -> None:
    page = write_report(tmp_path, make_records(analysed=False)).read_text()
    text = text_of(page)
    assert '6 trainings of 6 were not looked at image by image' in text
    assert text.count('No training was looked at image by image.') == 2
    assert 'shift consistency' not in text
    assert 'id="passes"' not in page
    assert 'id="claims"' not in page
    assert '90.67 ± 0.83' in text


def test_where_some_are_not_analysed_their_runs_have_a_dash(tmp_path: Path) -> None:
    write_report(tmp_path, [*make_records()[1::2], make_record('good', 1, 90.0, analysed=False)])
    markdown = (tmp_path / 'report.md').read_text()
    assert '1 training of 4 were not looked at' in markdown
    [row] = [line for line in markdown.splitlines() if line.startswith('| 1 · good | 1 | 90.00 |')]
    assert '| – |' in row


def test_times_to_an_accuracy_say_who_did_not_get_there(tmp_path: Path) -> None:
    records = [make_record('some', seed, top1) for seed, top1 in ((1, 86.0), (2, 79.0), (3, 82.0))]
    records += [make_record('none', 1, 60.0), make_record('all', 1, 86.0)]  # 64.5 % after 30 s, 86 % after 40 s
    write_report(tmp_path, records)
    header, _, *rows = [line for line in (tmp_path / 'report.md').read_text().splitlines() if line.startswith('|')]
    assert 'time to 80 % | time to 85 % | training time' in header
    assert '| 37.2 s | 39.5 s |' in rows[0]
    assert '| 2 of 3 seeds | 1 of 3 seeds |' in rows[1]
    assert '| not reached | not reached |' in rows[2]


@pytest.mark.slow
def test_runs_of_before_an_option_was_there(tmp_path: Path) -> None:
    records = make_records()
    for record in records:
        if record.run == 'good':
            del record.result.recipe['train_img_sizes']
    write_report(tmp_path, records)
    assert 'train_img_sizes' not in (tmp_path / 'report.md').read_text(), 'None, as in the others'


def test_what_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    records = [make_record('a', 1, 50.0, loss=float('nan'), gmacs=None, seconds={'train': None}, per_class={})]
    page = write_report(tmp_path, records).read_text()
    assert 'nan' not in text_of(page).lower()
    numbers = json.loads((tmp_path / 'report.json').read_text())
    assert numbers['runs'][0]['metrics']['loss'] is None
    assert 'GMACs |' not in (tmp_path / 'report.md').read_text()


def test_of_two_seeds_both_values_are_shown(tmp_path: Path) -> None:
    records = [make_record('a', seed, top1, analysed=False) for seed, top1 in ((1, 20.25), (2, 28.5))]
    text = summary(records)
    assert '20.25, 28.50' in text
    assert text.endswith('(mean of the seeds ± 95 % interval, of two seeds both values)')
    page = write_report(tmp_path, records).read_text()
    assert '20.25, 28.50' in text_of(page)
    assert 'of two seeds both values' in text_of(page)
    assert 'both values' not in summary([*records, make_record('a', 3, 25.0, analysed=False)])


def test_means_in_json_are_over_seeds(tmp_path: Path) -> None:
    write_report(tmp_path, make_records(analysed=False))
    good, bad = json.loads((tmp_path / 'report.json').read_text())['runs']
    assert good['metrics']['top1']['mean'] == pytest.approx(90 + 2 / 3)
    assert good['metrics']['top1']['values'] == pytest.approx([90 + seed / 3 for seed in (1, 2, 3)])
    assert bad['curve'][1]['mean'] == pytest.approx(35.5)
    assert bad['per_class']['church']['mean'] == pytest.approx(70.0)


def test_times_of_unlike_machines_are_left_out_and_that_is_said_once(tmp_path: Path) -> None:
    records = make_records(analysed=False)
    assert {'total', 'images/s'} <= set(summary_rows(records)[0])
    records[0].result.hardware['threads'] = 1
    assert not {'total', 'images/s'} & set(summary_rows(records)[0])
    assert summary(records).count('times are left out') == 1
    write_report(tmp_path, records)
    markdown = (tmp_path / 'report.md').read_text()
    [header] = [line for line in markdown.splitlines() if line.startswith('| run | seeds |')]
    assert header == '| run | seeds | top-1, % | parameters, M | GMACs |'
    assert markdown.count('They are left out here') == 1
    assert json.loads((tmp_path / 'report.json').read_text())['runs'][0]['metrics']['images_per_second']


def test_the_best_epoch_has_a_column_where_it_is_not_the_last(tmp_path: Path) -> None:
    for best in (90.0, 91.5):
        write_report(tmp_path, [make_record('a', 1, 90.0, best_top1=best, analysed=False)])
        assert ('best epoch, %' in (tmp_path / 'report.md').read_text()) == (best > 90)


def test_runs_that_ended_at_a_goal_say_after_how_many_epochs(tmp_path: Path) -> None:
    write_report(tmp_path, [make_record('whole', 1, 90.0)])
    assert '| epochs |' not in (tmp_path / 'report.md').read_text()
    recipe = Recipe(epochs=20, stop_at='top1=90').as_dict()
    stopped = [
        make_record('goal', seed, 91.0, epochs=epochs, recipe=recipe, stopped='top1=90 is reached')
        for seed, epochs in ((1, 4), (2, 7))
    ]
    write_report(tmp_path, [*stopped, make_record('whole', 1, 90.0, epochs=20, recipe=Recipe(epochs=20).as_dict())])
    header, _, *rows = [line for line in (tmp_path / 'report.md').read_text().splitlines() if line.startswith('|')]
    assert '| epochs |' in header
    assert '| 4 to 7 of 20 |' in rows[0]
    assert '| 20 of 20 |' in rows[1]
