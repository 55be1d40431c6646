"""Where the command begins: what may happen before anything else is imported is seen to first."""

import sys

from orchestrator import stopping


def main() -> int:
    """Run one command of this process' arguments; the result is the exit code."""
    try:
        with stopping.stoppable():
            from orchestrator import cli  # a second of imports, which may be stopped as anything else

            return cli.main()
    except KeyboardInterrupt as error:
        sys.stderr.write(f"latentsweep: {stopping.told(error)}\n")
        return stopping.exit_code(stopping.stopped_by(error))
    finally:
        stopping.until_the_end()


if __name__ == "__main__":
    sys.exit(main())
