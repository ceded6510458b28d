from collections.abc import Iterable, Iterator
from itertools import islice

from django.core.management import BaseCommand, CommandParser
from django.utils.text import slugify
from tqdm import tqdm

from django_executors import ThreadPoolExecutor
from tests.testapp.models import Article

BATCH = 500


def fill(pks: list[int]) -> int:
    """Fill in the slugs of these articles: one task."""
    articles = list(Article.objects.filter(pk__in=pks))
    for article in articles:
        article.slug = slugify(f"{article.title} {article.pk}")
    return Article.objects.bulk_update(articles, ["slug"])


def batches(pks: Iterable[int]) -> Iterator[list[int]]:
    pks = iter(pks)
    while batch := list(islice(pks, BATCH)):
        yield batch


class Command(BaseCommand):
    help = "Fill in the slugs that are missing. It may be stopped, and run again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--workers", type=int, default=4)

    def handle(self, *, workers: int, **options: object) -> None:
        missing = Article.objects.filter(slug=None)
        pks = missing.values_list("pk", flat=True).iterator()
        with ThreadPoolExecutor(workers) as pool, tqdm(total=missing.count(), unit=" rows") as bar:
            for filled in pool.map(fill, batches(pks), buffersize=2 * workers):
                bar.update(filled)
