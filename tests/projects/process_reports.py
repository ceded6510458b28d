"""Tasks and tests of `docs/processes.md`, which includes them from here."""

# mypy: ignore-errors
# ruff: noqa: E402, I001, PT009
from tests.projects.testapp.models import Entry

# tasks: begin
from django_executors import ProcessPoolExecutor


def length_of(pk):
    entry = Entry.objects.get(pk=pk)
    return len(entry.name)  # in earnest: something that computes for long


def lengths(pks):
    with ProcessPoolExecutor(max_workers=2) as pool:
        return list(pool.map(length_of, pks, chunksize=10))


# initializer: begin
known = {}


def remember():
    known.update(Entry.objects.values_list("pk", "name"))


def name_of(pk):
    return known[pk]


def names(pks):
    with ProcessPoolExecutor(max_workers=2, initializer=remember) as pool:
        return list(pool.map(name_of, pks))


# tests: begin
from django.test import TransactionTestCase


class LengthTests(TransactionTestCase):
    def test_lengths(self):
        entry = Entry.objects.create(name="a report")  # committed: other processes see it
        self.assertEqual(lengths([entry.pk]), [8])


# inline: begin
from django.test import TestCase

from django_executors.testing import run_inline


@run_inline
class InlineTests(TestCase):
    def test_lengths(self):
        entry = Entry.objects.create(name="a report")
        self.assertEqual(lengths([entry.pk]), [8])


# for the tests of the page: begin
import multiprocessing
import os
import signal


def kill_oneself(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def pid(*_):
    return os.getpid()


def start_method(*_):
    return {
        "Process": "fork",
        "ForkProcess": "fork",
        "SpawnProcess": "spawn",
        "ForkServerProcess": "forkserver",
    }[type(multiprocessing.current_process()).__name__]
