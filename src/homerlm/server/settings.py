"""Settings of the server: flags before the environment (`HOMER_SERVE_PORT`) before a TOML file; each default once."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Self

import platformdirs
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import TomlConfigSettingsSource as TomlSource

from homerlm.errors import ConfigError
from homerlm.index.buckets import Place, is_url
from homerlm.server.keys import Keys, hash_of
from homerlm.store.store import Store

PREFIX = "HOMER_SERVE_"
HASHED = "sha256:"  # what a key is written behind where it is a hash already
Listed = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Checked when made; not changed afterwards. Of API keys only hashes are kept. Raises `ConfigError` by `of`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen at; any but this machine's own needs an API key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen at; 0 for any free one.")
    name: str | None = Field(None, description="Name that clients call the model by; default its own.")
    api_key: Listed = Field((), description="A key that clients have to send. May be repeated.")
    key_file: Path | None = Field(None, description="File with a key on each line, or its hash as sha256:HEX.")
    without_key: bool = Field(False, description="Listen at an address that others reach, and ask for no key.")
    cors_origin: Listed = Field((), description="A web page's origin that may call the server. May be repeated.")

    store: str | None = Field(
        None, description="Folder, or s3://bucket/name, for documents that were read; default the user's own folder."
    )
    store_on_network: bool = Field(False, description="It is on a network file system, for several machines.")
    store_bytes: int = Field(20 << 30, ge=1, description="Most bytes in it; what was used longest ago goes.")
    owner_bytes: int = Field(10 << 30, ge=1, description="Most bytes in it of one key.")
    document_days: float | None = Field(None, gt=0, description="Days after its last use until a document goes.")

    max_body_bytes: int = Field(64 << 20, ge=1, description="Longest request, files apart.")
    max_upload_bytes: int = Field(512 << 20, ge=1, description="Largest file.")
    max_messages: int = Field(4096, ge=1, description="Most messages of a request.")
    max_parts: int = Field(4096, ge=1, description="Most parts of a request's messages.")
    max_prompt_tokens: int = Field(4 << 20, ge=1, description="Longest prompt in tokens, documents included.")
    max_new_tokens: int = Field(2048, ge=1, description="Longest answer in tokens, and its limit where none is asked.")
    streams: int = Field(32, ge=1, description="Most answers that are written at once.")
    waiting: int = Field(64, ge=1, description="Most requests beyond those before clients are told to come later.")
    request_seconds: float = Field(3600, gt=0, description="Longest time for one answer, search or ranking.")
    ping_seconds: float = Field(10, gt=0, description="Time between signs of life while a document is read.")
    response_seconds: float = Field(24 * 3600, gt=0, description="How long responses can be gone on from.")
    max_responses: int = Field(1000, ge=0, description="Most responses that are kept for that, in memory.")
    response_bytes: int = Field(512 << 20, ge=0, description="About the most memory that they take.")
    closing_seconds: float = Field(25, ge=0, description="Time that running answers get when the server ends.")

    @classmethod
    def of(cls, file: Path | None = None, **flags: Any) -> Self:
        """The settings of flags (None for those that were not given), the environment and a file. Raises `ConfigError`
        with the field's name, and never with a key."""
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            return (cls if file is None else _with_file(cls, file))(**given)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            message = str(first["msg"]).removeprefix("Value error, ")
            raise ConfigError(f"{name}: {message}" if name else message) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"the settings cannot be read: {error}") from None

    @field_validator("api_key", "cors_origin", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """The environment's commas."""
        return [one.strip() for one in given.split(",") if one.strip()] if isinstance(given, str) else given

    @field_validator("store", mode="before")
    @classmethod
    def _place(cls, given: Any) -> Any:
        return os.fspath(given) if isinstance(given, os.PathLike) else given

    @field_validator("api_key", mode="after")
    @classmethod
    def _hashed(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_hash, given))

    @model_validator(mode="after")
    def _safe(self) -> Self:
        keys = self.keys()  # also where none are needed: a file that cannot be read is a mistake
        if not (keys or is_loopback(self.host) or self.without_key):
            raise ValueError(
                f"host is {self.host}, which other machines reach, and there is no key: set api_key (--api-key) or "
                "key_file (--key-file), or without_key (--without-key) if everybody may use this server"
            )
        return self

    @property
    def folder(self) -> Place:
        """Where documents are kept: a folder, or the URL of a bucket's."""
        own = platformdirs.user_data_path("homerlm") / "store"
        return own if self.store is None else self.store if is_url(self.store) else Path(self.store)

    @property
    def lifetime(self) -> float | None:
        """Seconds from a document's last use until it goes, None for never."""
        return None if self.document_days is None else self.document_days * 24 * 3600

    def open_store(self, max_bytes: int | None = None) -> Store:
        """The store of the settings, of so many bytes at most where it is to have others. Raises as `Store`."""
        most = self.store_bytes if max_bytes is None else max_bytes
        return Store(self.folder, max_bytes=most, owner_bytes=self.owner_bytes, on_network=self.store_on_network)

    def keys(self) -> Keys:
        """Those of the settings and of the key file."""
        lines = () if self.key_file is None else self.key_file.read_text(encoding="utf-8").splitlines()
        written = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return Keys(hashes=[known.removeprefix(HASHED) for known in (*self.api_key, *map(_hash, written))])

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlSource(settings_cls)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _with_file(cls: type[Any], file: Path) -> type[Any]:
    if not file.is_file():
        raise ConfigError(f"{file} is no file: pass a TOML file with settings of the server")
    return type(
        cls.__name__, (cls,), {"model_config": SettingsConfigDict(toml_file=file), "__module__": cls.__module__}
    )


def _hash(key: str) -> str:
    if key.startswith(HASHED):
        digest = key.removeprefix(HASHED).lower()
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError("a key behind sha256: must be 64 hexadecimal digits")
        return HASHED + digest
    if not key or any(character.isspace() for character in key):
        raise ValueError("a key must not be empty or hold spaces")
    return HASHED + hash_of(key)
