"""Claims in a report: the verdicts come first, and say what would decide them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from imagenette_zoo.report import setup, studies
from imagenette_zoo.report.page import report_numbers, write_report
from imagenette_zoo.report.studies import verdicts
from imagenette_zoo.study.decisions import judge, with_pairs
from imagenette_zoo.study.plan import StepTimes, Study
from imagenette_zoo.study.records import by_run, samples_of
from tests.report.records import make_record, make_records, text_of


@pytest.mark.slow
def test_verdicts_come_first_and_are_those_of_the_statistics(written: Path, study: Study) -> None:
    page = (written / 'report.html').read_text()
    expected = judge(study.claims, samples_of(study, by_run(make_records())))
    assert [verdict.verdict for verdict in expected] == ['supported', 'contradicted', 'undecided']
    row = r'<li class="(\w+)">\s*<div class="verdict"><span aria-hidden="true">(.)</span> (\w+).*?>(C\d): Sentence'
    found = re.findall(row, page, re.DOTALL)
    assert found == [
        ('supported', '✓', 'supported', 'C1'), ('contradicted', '✗', 'contradicted', 'C2'),
        ('undecided', '?', 'undecided', 'C3'),
    ]  # fmt: skip
    order = 'id="claims"', '3 claims: 2 decided', '<svg class="bar"', 'Versions:', 'id="details"', 'id="runs"'
    places = [page.index(each) for each in (*order, 'id="how"')]
    assert places == sorted(places)
    numbers = json.loads((written / 'report.json').read_text())
    for claim, verdict in zip(numbers['claims'], expected, strict=True):
        assert claim['p_adjusted'] == pytest.approx(verdict.p_adjusted)
        assert claim['more_seeds'] == verdict.more_seeds
        assert claim['findings'][0]['effect'] == pytest.approx(verdict.findings[0].estimate)
        assert claim['findings'][0]['low'] == pytest.approx(verdict.findings[0].low)
    effect = expected[0].findings[0]
    assert effect.low is not None
    assert effect.high is not None
    for text in (text_of(page), (written / 'report.md').read_text()):
        assert f'{effect.estimate:+.2f} points, corrected interval {effect.low:+.2f} to {effect.high:+.2f}' in text
        assert 'no test: the difference is the same in all blocks' in text
        assert re.search(r'good:? 90\.56 ± 2\.39 %, 3 seeds', text)


def test_a_verdict_of_an_earlier_look_says_so_everywhere(tmp_path: Path, study: Study) -> None:
    values = {'good': (60.0, 61.0, 60.5, 40.0, 41.0), 'bad': (50.0, 51.1, 50.4, 50.0, 51.0)}
    records = [
        make_record(run, seed, top1, analysed=False)
        for run, each in values.items()
        for seed, top1 in enumerate(each, 1)
    ]
    plan = replace(study, claims=())
    so = 'good is 10.0 points above bad (9.2 to 10.8)'
    assert verdicts(plan, records) == f'{so}: supported, decided after 3 of 5 seeds'
    page = write_report(tmp_path, records, study=with_pairs(plan, records)).read_text()
    assert '<small>after 3 of 5 seeds</small>' in page
    assert 'decided after 3 of 5 seeds' in text_of(page)
    assert 'difference of all 5 seeds +2.00 points' in text_of(page)
    markdown = (tmp_path / 'report.md').read_text()
    assert f'{so}; after 3 of 5 seeds' in markdown
    assert 'decided: after 3 of 5 seeds' in markdown


def test_more_seeds_are_asked_for_where_they_would_decide(tmp_path: Path, study: Study) -> None:
    records = [
        make_record(run, seed, 80 + high + seed * slope, analysed=False)
        for run, high, slope in (('good', 3.0, 0.5), ('bad', 0.0, -0.5))
        for seed in (1, 2, 3)
    ]
    write_report(tmp_path, records, study=study)
    [more] = {claim['more_seeds'] for claim in json.loads((tmp_path / 'report.json').read_text())['claims'][:2]}
    assert f'about {more} more seeds' in (tmp_path / 'report.md').read_text()


@pytest.mark.slow
def test_one_seed_decides_nothing_and_the_report_says_what_is_missing(tmp_path: Path, study: Study) -> None:
    page = write_report(tmp_path, make_records()[:1], study=study).read_text()
    text = text_of(page)
    assert 'undecided' in text
    assert 'nothing is known of bad' in text
    assert 'Not finished yet: 5 trainings: bad-seed1, good-seed2' in text
    pair = write_report(tmp_path, make_records()[:2], study=study).read_text()
    assert 'verdicts need 3 seeds' in text_of(pair)


def test_without_claims_each_pair_is_judged(study: Study, tmp_path: Path) -> None:
    plan = replace(study, claims=())
    records = make_records()
    judged = with_pairs(plan, records)
    assert [claim.order for claim in judged.claims] == [('good > bad',)]
    assert with_pairs(study, records) is study
    elsewhere = [make_record('other', 1, 50.0, dataset={'name': 'flowers', 'hash': 'y'}), *records]
    assert with_pairs(plan, elsewhere).claims == (), 'on other images'
    assert verdicts(plan, elsewhere) == 'no verdicts: the runs are on several data sets'
    [line] = verdicts(plan, records).splitlines()
    assert re.fullmatch(r'(undecided: )?.*good.*bad.*', line)
    assert len(verdicts(study, records).splitlines()) == 2 * len(study.claims)


def test_pairs_do_not_depend_on_what_is_finished(study: Study) -> None:
    plan = replace(study, claims=(), runs={**study.runs, 'late': study.runs['good']})
    records = make_records()
    families = []
    late = [make_record('late', 1, 70.0)]
    for known, lines in ((records, 2), ([*records, *late], 3), (late, 2)):
        judged = with_pairs(plan, known)
        families.append({frozenset(claim.runs) for claim in judged.claims})
        assert len(verdicts(plan, known).splitlines()) == lines, 'that nothing is known of a run is said once'
    assert families == [{frozenset(pair) for pair in (('good', 'bad'), ('good', 'late'), ('bad', 'late'))}] * 3


def test_too_many_runs_for_pairs_are_told(study: Study, tmp_path: Path) -> None:
    records = [make_record(f'run{index}', 1, 50.0 + index) for index in range(7)]
    loose = Study('', {}, (1,))
    why = 'each pair of up to 6 runs is judged, and these are 7. Report on fewer, or write the claims into a study file'
    assert verdicts(loose, records) == f'no verdicts: {why}'
    assert len(verdicts(loose, records[1:]).splitlines()) == 15
    page = write_report(tmp_path, records, study=with_pairs(loose, records)).read_text()
    assert f'No verdicts: {why}.' in text_of(page)


def test_steps_that_were_timed_elsewhere_are_told(study: Study) -> None:
    timed = replace(study.claims[0], metric='step_time')
    records = make_records()
    here = records[0].result.hardware
    for machine, claims, told in (
        ({**here, 'cpu': 'another'}, (timed,), True), (here, (timed,), False), ({'cpu': 'another'}, study.claims, False)
    ):  # fmt: skip
        plan = replace(study, claims=claims, step_times=StepTimes({}, {}, machine))
        notes = setup.notes(report_numbers(records, plan))
        assert any(re.match('Steps were timed where no training ran: on .* another', note) for note in notes) == told


def test_a_pair_is_said_once(study: Study, tmp_path: Path) -> None:
    records = make_records(analysed=False)
    page = write_report(tmp_path, records, study=with_pairs(replace(study, claims=()), records)).read_text()
    [claim] = json.loads((tmp_path / 'report.json').read_text())['claims']
    assert '1 pair of runs: 1 decided (1 supported).' in text_of(page)
    assert claim['name'] == 'good, bad'
    assert 'good, bad' not in text_of(page)
    assert claim['what_is_so'] in text_of(page)
    assert 'first higher →' in text_of(page)


def test_runs_without_a_seed_in_common_are_not_judged(study: Study) -> None:
    records = [make_record('a', 1, 80.0), make_record('b', 2, 70.0)]
    assert verdicts(replace(study, claims=(), runs={}), records) == 'undecided: a and b have no seed in common'


def test_loose_runs_are_judged_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(studies, 'group_runs', lambda _: make_records(analysed=False))
    (tmp_path / 'result.json').touch()
    studies.report_on([str(tmp_path)], str(tmp_path / 'report'))
    assert re.search(r'^good is 19.* points above bad .*: supported$', capsys.readouterr().out, re.MULTILINE)
    numbers = json.loads((tmp_path / 'report' / 'report.json').read_text())
    assert (numbers['title'], numbers['unfinished']) == ('Report on good, bad', [])
    assert [claim['verdict'] for claim in numbers['claims']] == ['supported']
