"""Files in an object store: data through pyarrow, create-once through what the protocol offers (fsspec)."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from importlib import import_module
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from afterfit.errors import StoreError
from afterfit.store.files import store_error

PATIENCE = timedelta(seconds=60)
"""How long Google's client repeats what fails; left alone it takes 15 minutes to say that nobody answers."""


class ObjectFiles(ABC):
    """Objects below a bucket and prefix. An object appears whole, when its upload is complete."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        parsed = urlsplit(uri)
        query = dict(parse_qsl(parsed.query))
        self._bucket = parsed.netloc
        self._root = f"{parsed.netloc}/{parsed.path.strip('/')}".rstrip("/")
        if not parsed.netloc or "@" in parsed.netloc or set(query) - {"endpoint_override"}:
            shown = f"{parsed.scheme}://{parsed.netloc.rpartition('@')[2]}{parsed.path}"  # without a password
            raise StoreError(
                f"No store can be opened at {shown}: write {parsed.scheme}://bucket/prefix "
                "with ?endpoint_override=http://host:port if needed; credentials come from the environment."
            )
        self._endpoint = query.get("endpoint_override") or self._endpoint_of_environment()
        if self._endpoint and "://" not in self._endpoint:
            self._endpoint = f"https://{self._endpoint}"

    def __reduce__(self) -> tuple[type["ObjectFiles"], tuple[str]]:
        return type(self), (self.uri,)

    @abstractmethod
    def _endpoint_of_environment(self) -> str | None:
        """Where the user's environment says that the service is, if anywhere."""

    @abstractmethod
    def _open_data(self) -> pafs.FileSystem:
        """The service as pyarrow sees it."""

    @abstractmethod
    def _open_creator(self) -> Any:
        """The same for fsspec, whose `pipe_file(..., mode="create")` is create-once."""

    @cached_property
    def _data(self) -> pafs.FileSystem:
        self._client_errors()  # says so if the extra is not installed, before the network is asked
        with self._trouble("opened"):
            return self._open_data()

    @cached_property
    def _creator(self) -> Any:
        with self._trouble("opened"):
            return self._open_creator()

    def prepare(self) -> None:
        """See that the bucket is there and can be listed; buckets are not made."""
        with self._trouble("opened"):
            for path in (self._root, self._bucket):
                if self._data.get_file_info(path).type != pafs.FileType.NotFound:
                    return
        raise StoreError(f"The store {self.uri} cannot be opened: make the bucket {self._bucket} first.")

    def open_output(self, path: str) -> BinaryIO:
        """A stream into a new object."""
        with self._trouble("written"):
            return cast("BinaryIO", self._data.open_output_stream(f"{self._root}/{path}"))

    def finish(self, stream: BinaryIO) -> None:
        """Complete the upload."""
        with self._trouble("written"):
            stream.close()

    def open_input(self, path: str) -> BinaryIO:
        """A stream that reads the ranges asked for."""
        with self._trouble("read", FileNotFoundError):
            return cast("BinaryIO", self._data.open_input_file(f"{self._root}/{path}"))

    def read(self, path: str) -> bytes | None:
        """A small object, whole; None where there is none."""
        try:
            with self._trouble("read", FileNotFoundError):
                return self._data.open_input_stream(f"{self._root}/{path}").read()
        except FileNotFoundError:
            return None

    def size(self, path: str) -> int | None:
        """Bytes; None where there is none."""
        with self._trouble("read"):
            return self._data.get_file_info(f"{self._root}/{path}").size

    def create(self, path: str, data: bytes) -> bool:
        """One conditional put. Whatever goes wrong after another's object is there, the other has won."""
        try:
            with self._trouble("written", FileExistsError):
                self._creator.pipe_file(f"{self._root}/{path}", data, mode="create")
        except FileExistsError:
            return False
        except StoreError:
            if self.size(path) is not None:
                return False
            raise
        return True

    def replace(self, path: str, data: bytes) -> None:
        """One put."""
        with self._trouble("written"), self._data.open_output_stream(f"{self._root}/{path}") as stream:
            stream.write(data)

    def delete(self, path: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError), self._trouble("changed", FileNotFoundError):
            self._data.delete_file(f"{self._root}/{path}")

    def delete_below(self, path: str) -> None:
        """Remove all objects below a prefix."""
        with suppress(FileNotFoundError), self._trouble("changed", FileNotFoundError):
            self._data.delete_dir(f"{self._root}/{path}")

    def below(self, path: str) -> list[str]:
        """Paths of all objects below a prefix: one listing, a request for a thousand objects."""
        base = f"{self._root}/{path}".rstrip("/")
        with self._trouble("read"):
            found = self._data.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        files = [info.path for info in found if info.type == pafs.FileType.File]
        return sorted(file.removeprefix(f"{self._root}/") for file in files)

    @contextmanager
    def _trouble(self, doing: str, *answers: type[OSError]) -> Iterator[None]:
        """What the service or its client raises is a StoreError, save for what is an answer."""
        try:
            yield
        except (OSError, pa.ArrowException, *self._client_errors()) as error:
            if isinstance(error, answers):
                raise
            raise store_error(self.uri, doing, error) from error

    def _client_errors(self) -> tuple[type[Exception], ...]:
        """What the client raises beside OSError."""
        return ()


class S3Files(ObjectFiles):
    """Amazon S3 and what speaks its protocol. Credentials, region and endpoint come from boto's variables."""

    def _endpoint_of_environment(self) -> str | None:
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")

    def _open_data(self) -> pafs.FileSystem:
        options: dict[str, Any] = {}
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if self._endpoint:
            scheme, _, host = self._endpoint.partition("://")
            options = {"scheme": scheme, "endpoint_override": host.rstrip("/")}
        elif not region:
            region = pafs.resolve_s3_region(self._bucket)
        return pafs.S3FileSystem(region=region, **options)

    def _open_creator(self) -> Any:
        client = _import("s3fs", "s3", self.uri)
        style = {"s3": {"addressing_style": "path"}} if self._endpoint else {}
        return client.S3FileSystem(endpoint_url=self._endpoint, config_kwargs=style, use_listings_cache=False)

    def _client_errors(self) -> tuple[type[Exception], ...]:
        _import("s3fs", "s3", self.uri)
        botocore = _import("botocore.exceptions", "s3", self.uri)
        return (botocore.BotoCoreError, botocore.ClientError)


class GcsFiles(ObjectFiles):
    """Google Cloud Storage, with application default credentials."""

    def _endpoint_of_environment(self) -> str | None:
        return os.environ.get("STORAGE_EMULATOR_HOST")

    def _open_data(self) -> pafs.FileSystem:
        if not self._endpoint:
            return pafs.GcsFileSystem(retry_time_limit=PATIENCE)
        scheme, _, host = self._endpoint.partition("://")
        host = host.rstrip("/")
        return pafs.GcsFileSystem(anonymous=True, scheme=scheme, endpoint_override=host, retry_time_limit=PATIENCE)

    def _open_creator(self) -> Any:
        client = _import("gcsfs", "gs", self.uri)
        endpoint = {"endpoint_url": self._endpoint, "token": "anon"} if self._endpoint else {}
        return client.GCSFileSystem(use_listings_cache=False, **endpoint)

    def _client_errors(self) -> tuple[type[Exception], ...]:
        retry = _import("gcsfs.retry", "gs", self.uri)
        google = _import("google.auth.exceptions", "gs", self.uri)
        return (google.GoogleAuthError, retry.HttpError, _import("aiohttp", "gs", self.uri).ClientError)


def _import(module: str, extra: str, uri: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise StoreError(
            f"The store {uri} cannot be opened: install it with pip install 'afterfit[{extra}]'."
        ) from error
