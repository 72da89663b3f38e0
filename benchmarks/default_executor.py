"""The definitions with Dagster's default executor, a process per step: the stock peer."""

from dagster import multi_or_in_process_executor

from cygno_assets.build import build_defs

defs = build_defs(executor=multi_or_in_process_executor)
