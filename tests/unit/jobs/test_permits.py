"""The app that both sides share: the settings that keep permits and workers alive, and its names in Redis."""

from __future__ import annotations

import pytest

from jobs.errors import InputError
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


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("redis://h:1/2", "redis://h:1/2"),
        ("redis://h?db=3", "redis://h:6379/3"),
        ("redis://h/1?db=3", "redis://h:6379/3"),
        ("redis://", "redis://localhost:6379/0"),
        ("redis://u:a%3Bb%2F@[::1]:7/2", "redis://u:a%3Bb%2F@[::1]:7/2"),
        ("redis://h?password=a%40b", "redis://:a%40b@h:6379/0"),
        ("redis://h:1/2?socket_timeout=3&protocol=3", "redis://h:1/2"),
        ("rediss://u:p@h:1/2", "rediss://u:p@h:1/2?ssl_cert_reqs=required"),
        (
            "rediss://h?ssl_cert_reqs=none&ssl_ca_certs=/a%20b&ssl_check_hostname=no",
            "rediss://h:6379/0?ssl_ca_certs=%2Fa+b&ssl_cert_reqs=none&ssl_check_hostname=false",
        ),
        ("unix:///tmp/x.sock", "redis+socket:///tmp/x.sock?virtual_host=0"),
        ("unix:///tmp/x.sock?db=1", "redis+socket:///tmp/x.sock?virtual_host=1"),
        ("unix://:p%40w@/tmp/a%20b?db=2", "redis+socket://:p%40w@/tmp/a%20b?virtual_host=2"),
        ("unix://u:p@/tmp/x.sock", "redis+socket://u:p@/tmp/x.sock?virtual_host=0"),
    ],
)
def test_urls_are_spelled_as_kombu_wants_them(given: str, spelled: str) -> None:
    assert broker_url(given) == spelled


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://h", "is no Redis URL"),
        ("redis://:secret@h:1/0?db=x", "is no Redis URL"),
        ("redis://:secret/more@h", "is no Redis URL"),
        ("redis://h:99999", "is no Redis URL"),
        ("unix://", "names no socket"),
        ("redis://:secret@h?foo=1", "options that Celery cannot use: foo"),
        ("redis://h?ssl_cert_reqs=none", "options that Celery cannot use: ssl_cert_reqs"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs is none, optional or required"),
    ],
)
def test_a_url_that_celery_cannot_use_is_refused_at_once_and_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as raised:
        make_app(url, "s1")
    assert "secret" not in str(raised.value)
