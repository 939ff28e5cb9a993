"""A server that speaks as much of S3 as reading takes: lists and gets objects, from memory; signatures are not checked.

It is faster than what is measured with it, which moto is not. Bucket `made` has `--count` objects of `--size` equal
bytes, bucket `files` the files of `--folder`. It prints its port, and runs until standard input ends:

    python benchmarks/object_server.py --count 100000 --size 100000
"""

import argparse
import asyncio
import bisect
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 1000
_DATE = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;0&quot;</ETag>"
_ENTRY = f"<Contents><Key>{{}}</Key>{_DATE}<Size>{{}}</Size></Contents>"


class Bucket:
    """Objects in the order of their keys."""

    def __init__(self, keys: list[str], bodies: list[bytes]) -> None:
        self.keys, self._bodies = keys, bodies

    def get(self, key: str) -> bytes | None:
        """Return the bytes of an object, None where there is none."""
        at = bisect.bisect_left(self.keys, key)
        if at == len(self.keys) or self.keys[at] != key:
            return None
        return self._bodies[at % len(self._bodies)]

    def list(self, prefix: str, after: str) -> bytes:
        """Return a page of a listing as XML."""
        first = bisect.bisect_right(self.keys, after) if after else bisect.bisect_left(self.keys, prefix)
        found = [key for key in self.keys[first : first + PAGE] if key.startswith(prefix)]
        is_last = len(found) < PAGE
        token = "" if is_last else f"<NextContinuationToken>{found[-1]}</NextContinuationToken>"
        entries = "".join(
            _ENTRY.format(key, len(self._bodies[at % len(self._bodies)])) for at, key in enumerate(found, first)
        )
        truncated = str(not is_last).lower()
        return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{entries}</ListBucketResult>".encode()


class Connection(asyncio.Protocol):
    """Answers the requests of one connection."""

    def __init__(self, buckets: dict[str, Bucket]) -> None:
        self._buckets, self._data = buckets, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request whose headers are complete; none has a body."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            method, target, _ = self._data[: self._data.index(b"\r\n")].decode().split(" ")
            self._data = self._data[end + 4 :]
            self._answer(method, target)

    def _answer(self, method: str, target: str) -> None:
        parts = urlsplit(target)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if key:
            body = self._buckets[bucket].get(key)
        else:
            body = self._buckets[bucket].list(
                query.get("prefix", ""), query.get("continuation-token") or query.get("start-after", "")
            )
        head = "200 OK" if body is not None else "404 Not Found"
        headers = f'HTTP/1.1 {head}\r\nContent-Length: {len(body or b"")}\r\nETag: "0"\r\n'
        self._transport.write(f"{headers}Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n".encode())
        if body and method != "HEAD":
            self._transport.write(body)


async def serve(buckets: dict[str, Bucket]) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(buckets), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    made = [f"photos/{number // 1000:05}/{number:08}.jpg" for number in range(arguments.count)]
    files = sorted(arguments.folder.iterdir()) if arguments.folder else []
    buckets = {
        "made": Bucket(made, [bytes(arguments.size)]),
        "files": Bucket([file.name for file in files], [file.read_bytes() for file in files] or [b""]),
    }
    asyncio.run(serve(buckets))


if __name__ == "__main__":
    main()
