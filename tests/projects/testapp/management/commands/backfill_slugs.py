from collections.abc import Iterator

from django.core.management import BaseCommand, CommandParser
from django.db.models import QuerySet
from django.utils.text import slugify
from tqdm import tqdm

from django_executors import ThreadPoolExecutor
from tests.projects.testapp.models import Article

BATCH = 500


def fill(pks: list[int]) -> int:
    """Fill in the slugs of these articles: one task."""
    articles = list(Article.objects.filter(pk__in=pks))
    for article in articles:
        article.slug = slugify(f"{article.title} {article.pk}")
    return Article.objects.bulk_update(articles, ["slug"])


def batches(articles: QuerySet[Article]) -> Iterator[list[int]]:
    """Read the keys of these articles, some at a time."""
    last = 0
    while pks := list(articles.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:BATCH]):
        yield pks
        last = pks[-1]


class Command(BaseCommand):
    help = "Fill in the slugs that are missing. It may be stopped, and run again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--workers", type=int, default=4)

    def handle(self, *, workers: int, **options: object) -> None:
        missing = Article.objects.filter(slug=None)
        with ThreadPoolExecutor(workers) as pool, tqdm(total=missing.count(), unit=" rows") as bar:
            for filled in pool.map(fill, batches(missing), buffersize=2 * workers):
                bar.update(filled)
