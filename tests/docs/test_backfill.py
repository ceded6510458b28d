"""The management command of `docs/backfill.md`, on a large table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.management import call_command
from django.db import DataError, connection

from tests.projects.testapp.management.commands import backfill_slugs
from tests.projects.testapp.models import Article
from tests.support.observers import PostgresObserver

WORKERS = 4


def make_articles(count: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {Article._meta.db_table} (title) "
            "SELECT 'An article' FROM generate_series(1, %s)",
            [count],
        )


@pytest.fixture(autouse=True)
def no_articles() -> Iterator[None]:
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {Article._meta.db_table}")
    connection.close()


@pytest.mark.timeout(300)
def test_50_000_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: PostgresObserver
) -> None:
    """Each row is filled in once, on no more connections than the workers' and the command's own."""
    make_articles(50_000)
    filled: list[int] = []
    connections: list[int] = []
    fill = backfill_slugs.fill

    def watched(pks: list[int]) -> int:
        connections.append(len(postgres.backends("app")))
        filled.extend(pks)
        return fill(pks)

    monkeypatch.setattr(backfill_slugs, "fill", watched)
    call_command("backfill_slugs", workers=WORKERS)
    assert len(filled) == len(set(filled)) == 50_000
    assert not Article.objects.filter(slug=None).exists()
    article = Article.objects.latest("pk")
    assert article.slug == f"an-article-{article.pk}"
    assert max(connections) <= WORKERS + 1
    assert "100%" in capsys.readouterr().err
    connection.close()
    assert not postgres.left()


def test_stopped_and_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: PostgresObserver
) -> None:
    """A batch that fails ends the command with its error; the next run does what is missing."""
    make_articles(20_000)
    fill, begun = backfill_slugs.fill, []

    def fails_once(pks: list[int]) -> int:
        begun.append(pks)
        if len(begun) == 10:
            raise DataError("of a row")
        return fill(pks)

    monkeypatch.setattr(backfill_slugs, "fill", fails_once)
    with pytest.raises(DataError, match="of a row"):
        call_command("backfill_slugs", workers=WORKERS)
    assert len(begun) < 40  # the rest was cancelled, or not even read
    missing = Article.objects.filter(slug=None).count()
    assert 0 < missing < 20_000
    call_command("backfill_slugs", workers=WORKERS)
    assert not Article.objects.filter(slug=None).exists()
    assert f"{missing}/{missing}" in capsys.readouterr().err
    connection.close()
    assert not postgres.left()
