"""The app that both sides share: the settings that keep permits and workers alive, and its names in Redis."""

from __future__ import annotations

import pytest

from jobs.permits import PERMIT_TASK, broker_url, make_app, queue_key, queue_name


def test_names_carry_the_store_so_that_two_stores_never_meet() -> None:
    assert queue_name("org/model:7b") == "permits.org/model:7b"
    assert queue_key("s1", "tiny") == "promptmill:s1:celery:permits.tiny"
    assert PERMIT_TASK == "promptmill.permit"


def test_a_worker_consumes_the_permits_of_its_model_alone() -> None:
    conf = make_app("redis://127.0.0.1:1/0", "s1", "tiny").conf
    assert [queue.name for queue in conf.task_queues] == ["permits.tiny"]
    assert conf.task_create_missing_queues is False
    assert conf.broker_transport_options["global_keyprefix"] == "promptmill:s1:celery:"


def test_a_producer_consumes_nothing() -> None:
    assert make_app("redis://127.0.0.1:1/0", "s1").conf.task_queues == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accept_content", ["json"]), ("task_serializer", "json"), ("task_ignore_result", True),
        ("task_acks_late", False), ("worker_prefetch_multiplier", 1),
        ("worker_cancel_long_running_tasks_on_connection_loss", False), ("worker_enable_remote_control", False),
        ("broker_channel_error_retry", True), ("broker_connection_retry_on_startup", True),
        ("broker_connection_max_retries", None),
    ],
)  # fmt: skip
def test_the_app_holds_to_what_was_found_to_be_safe(name: str, value: object) -> None:
    assert getattr(make_app("redis://127.0.0.1:1/0", "s1", "tiny").conf, name) == value


def test_no_call_to_the_broker_can_hang_for_ever() -> None:
    options = make_app("redis://127.0.0.1:1/0", "s1").conf.broker_transport_options
    assert 0 < options["socket_timeout"] <= 60
    assert 0 < options["socket_connect_timeout"] <= 10
    assert "retry_on_timeout" not in options  # it can send twice


def test_urls_are_spelled_as_kombu_wants_them() -> None:
    assert broker_url("unix:///tmp/x.sock?db=1") == "redis+socket:///tmp/x.sock?db=1"
    assert broker_url("rediss://u:p@h:1/2") == "rediss://u:p@h:1/2"
