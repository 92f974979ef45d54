"""The command line: `obol {up,serve,worker,migrate,check,prices,clock,audit,rebuild,fake-provider}`.

Exit codes: 0 done, 1 the installation is at fault (one line on stderr says how), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway import settings as settings_module
from gateway.errors import ConfigurationError
from gateway.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["fake-provider"]:
            return _fake_provider(arguments[1:])
        options = parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except ConfigurationError as error:
        return _at_fault(error)
    except ExceptionGroup as group:  # of a task group whose tasks could not even begin
        if group.split(ConfigurationError)[1] is not None:
            raise
        return _at_fault(group)
    except KeyboardInterrupt:
        return 130


def _at_fault(error: Exception) -> int:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    sys.stderr.write(f"obol: {error}\n")
    return 1


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    top = argparse.ArgumentParser(
        prog="obol", description="Self-hosted gateway that meters, prices and bills API calls."
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    up = _command(commands, "up", _up, "run everything on this machine, supervised")
    _listening(up)
    up.add_argument("--workers", type=_count, metavar="N", help="gateway processes (default: one a core)")
    up.add_argument("--demo", action="store_true", help="with a demo merchant and a fake provider; needs no key")
    serve = _command(commands, "serve", _serve, "run one gateway process")
    _listening(serve)
    serve.add_argument("--fd", type=_descriptor, metavar="N", help="listen on this inherited socket instead")
    _ready_file(serve)
    _ready_file(_command(commands, "worker", _worker, "run the background worker"))
    _command(commands, "migrate", _migrate, "bring the database to this version's schema")
    _command(commands, "check", _check, "check the installation and print the bounds that follow from it")
    _prices_command(commands)
    _clock_command(commands)
    audit = _command(commands, "audit", _audit, "compare the live ledger with the durable record")
    audit.add_argument("--recompute", action="store_true", help="also price every stored charge again and compare")
    rebuild = _command(commands, "rebuild", _rebuild, "restore wallets that Redis lost from what PostgreSQL recorded")
    which = rebuild.add_mutually_exclusive_group()
    which.add_argument("--wallet", metavar="ID", help="only this wallet")
    which.add_argument("--shard", type=_shard, metavar="N", help="only the wallets of this shard")
    rebuild.add_argument("--dry-run", action="store_true", help="only tell what differs")
    rebuild.add_argument(
        "--accept-postgres",
        action="store_true",
        help="also where Redis has more than PostgreSQL: forget what was spent and credited since, telling all of it",
    )
    fake = commands.add_parser("fake-provider", help="run the fake provider (see its own --help)", add_help=False)
    fake.set_defaults(run=lambda _options: _fake_provider([]))
    return top


_Commands = argparse._SubParsersAction  # the type has no public name


def _command(
    commands: _Commands[argparse.ArgumentParser], name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(run=run)
    where = "where the data lies" if name == "up" else "of a running obol up, to use its engines and keys"
    command.add_argument("--data-dir", type=Path, metavar="DIR", help=f"data directory {where} (default: .obol)")
    return command


def _prices_command(commands: _Commands[argparse.ArgumentParser]) -> None:
    prices = _command(commands, "prices", _prices, "list and explain what providers' models cost")
    prices.add_argument("provider", nargs="?", help="its models; without it, all providers")
    prices.add_argument("model", nargs="?", help="its price in full, under any name that the provider takes")
    prices.add_argument("--usage", metavar="COUNTS", help="an example: input=1000,cached=500,output=200")
    prices.add_argument("--tier", metavar="NAME", help="the service tier of the example")
    prices.add_argument(
        "--merchant",
        metavar="ID",
        help="with the prices of this merchant first: its id, or a connection's or meter's of it",
    )
    prices.add_argument(
        "--book", metavar="VERSION", help="by a stored price book, as a request's price_version names it"
    )
    prices.add_argument("--json", action="store_true", help="as JSON")
    change = prices.add_mutually_exclusive_group()
    change.add_argument(
        "--replace", type=Path, metavar="FILE", help="set the merchant's own prices to those of this file"
    )
    change.add_argument("--clear", action="store_true", help="forget the merchant's own prices")


def _clock_command(commands: _Commands[argparse.ArgumentParser]) -> None:
    clock = _command(commands, "clock", _clock, "read a test merchant's clock, or move it ahead")
    clock.add_argument("--merchant", metavar="ID", help="which one, where there are several")
    change = clock.add_mutually_exclusive_group()
    change.add_argument(
        "--now", type=_moment, metavar="TIME", help="move it to this time, such as 2027-01-31T00:00:00Z"
    )
    change.add_argument("--advance", type=_span, metavar="SPAN", help="move it on by this much: 30d, 12h, 90s")


def _listening(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    command.add_argument("--port", type=_port, help="port to listen on, 0 for any free one (default: 8080)")


def _ready_file(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ready-file", type=Path, metavar="FILE", help="write pid and port there when ready")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _descriptor(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 3 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not an inherited descriptor (3 or more)")
    return int(text)


def _shard(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 1023:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard (0 to 1023)")
    return int(text)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2027-01-31T00:00:00Z") from None


def _span(text: str) -> timedelta:
    from gateway import clock

    try:
        return clock.read_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (1 to 256)")
    return int(text)


def _up(options: argparse.Namespace) -> int:
    from gateway.local import supervisor

    settings = settings_module.load(
        data_dir=options.data_dir and str(options.data_dir),
        host=options.host,
        port=options.port,
        workers=options.workers,
    )
    return supervisor.main(settings, demo=options.demo)


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from gateway import app

    host = settings.host if options.host is None else options.host
    port = settings.port if options.port is None else options.port
    return app.serve(settings, host=host, port=port, descriptor=options.fd, ready_file=options.ready_file)


def _worker(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from gateway.worker import main as worker

    return worker.run(settings, options.ready_file)


def _migrate(options: argparse.Namespace) -> int:
    from gateway.store import migrate

    return migrate.main(_settings(options))


def _check(options: argparse.Namespace) -> int:
    from gateway import checks

    return checks.main(_settings(options))


def _prices(options: argparse.Namespace) -> int:
    from gateway import price_list
    from gateway.prices.usage_text import read_usage

    changes = options.replace is not None or options.clear
    if changes and (not options.merchant or options.provider or options.usage or options.book or options.json):
        return _misused("--replace and --clear go with --merchant and nothing else")
    if (options.usage or options.tier) and not (options.model and options.usage):
        return _misused("--usage goes with a provider and a model, --tier with --usage")
    try:
        usage = read_usage(options.usage) if options.usage else None
    except ValueError as error:
        return _misused(f"--usage: {error}")
    wanted = price_list.Wanted(
        options.provider,
        options.model,
        usage,
        options.tier,
        options.merchant,
        options.book,
        options.replace,
        options.clear,
        options.json,
    )
    return price_list.main(_settings(options), wanted)


def _misused(why: str) -> int:
    sys.stderr.write(f"obol: {why}\n")
    return 2


def _clock(options: argparse.Namespace) -> int:
    from gateway import clock

    return clock.main(_settings(options), clock.Wanted(options.merchant, options.now, options.advance))


def _audit(options: argparse.Namespace) -> int:
    from gateway import audit

    return audit.main(_settings(options), recompute=options.recompute)


def _rebuild(options: argparse.Namespace) -> int:
    from gateway import rebuild

    wanted = rebuild.Wanted(options.wallet, options.shard, options.dry_run, options.accept_postgres)
    return rebuild.main(_settings(options), wanted)


def _fake_provider(argv: list[str]) -> int:
    from gateway.local import fake_provider

    return fake_provider.main(argv)


def _settings(options: argparse.Namespace) -> Settings:
    """The settings of the environment; what that leaves out, as a running `obol up` gave it to its children."""
    from gateway.local.data_dir import DataDir

    data_dir = options.data_dir or Path(settings_module.load().data_dir)
    running = DataDir(data_dir).running_environment()
    given = {name: value for name, value in os.environ.items() if value}
    environ = running | given
    # Prometheus' library reads its variable from the process itself, when it is imported.
    if "PROMETHEUS_MULTIPROC_DIR" in environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = environ["PROMETHEUS_MULTIPROC_DIR"]
    return settings_module.load(environ, data_dir=str(data_dir))


if __name__ == "__main__":
    sys.exit(main())
