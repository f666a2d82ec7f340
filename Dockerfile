# The daemon in a container: built in one stage, run in another that has no build tools, no pip and no root.
#
#     docker build -t pg-change-relay .
#
# Everything that is installed is pinned by version and hash in deploy/*.lock, and nothing in /relay depends on when it
# was built: the same base image and SOURCE_DATE_EPOCH give the same files. Pin the base too, and it is the same image:
# --build-arg PYTHON=python:3.13-slim@sha256:… Behind an index of your own: --build-arg PIP_INDEX_URL=https://…

ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
# Those that are not given leave pip as it is.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST
# A moment for every file: 2020-02-02, that of the wheels, unless another is asked for.
ARG SOURCE_DATE_EPOCH=1580601600
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_REQUIRE_VIRTUALENV=0
WORKDIR /src

# What changes rarely comes first, so that a change of the code installs no dependency again.
COPY deploy/build.lock deploy/requirements.lock deploy/
# Of source, and with nothing that is not pinned, is only what is published as source alone.
RUN python -m venv /build \
 && /build/bin/pip install --require-hashes --only-binary :all: -r deploy/build.lock \
 && /build/bin/pip wheel --require-hashes --only-binary :all: --no-binary nkeys --no-build-isolation \
        --wheel-dir /wheels -r deploy/requirements.lock \
 && python -m venv --without-pip /relay \
 && /build/bin/pip --python /relay/bin/python install --no-compile --no-deps --no-index /wheels/*.whl

COPY pyproject.toml README.md LICENSE ./
COPY sql sql
COPY relay relay
COPY deploy/healthcheck.py /relay/bin/healthcheck
# Compiled here, for the daemon may write nowhere; by content, not by time, so that two builds are equal.
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
 && /build/bin/pip --python /relay/bin/python install --no-compile --no-deps --no-index /dist/*.whl \
 && python -m compileall -q -f --invalidation-mode unchecked-hash /relay/lib \
 && chmod 755 /relay/bin/healthcheck \
 && find /relay -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +

FROM ${PYTHON}
# The base's own pip is of no use here either.
RUN site=$(python -c "import os, pip; print(os.path.dirname(pip.__path__[0]))") \
 && wheels=$(python -c "import ensurepip; print(*ensurepip.__path__)") \
 && rm -r "$site"/pip "$site"/pip-*.dist-info "$wheels" /usr/local/bin/pip*
COPY --from=build /relay /relay
ENV PATH=/relay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Any user but root will do: the daemon writes nothing to disk.
USER 65532:65532
EXPOSE 4001 4002
# Whether the process answers, not whether Postgres does: some orchestrators restart what is unhealthy, and a restart
# repairs no database; it only sends the clients away.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["healthcheck", "/live"]
# exec form: the daemon is process 1 and gets SIGTERM itself.
ENTRYPOINT ["relay"]
CMD ["serve"]

# docker build --build-arg REVISION=$(git rev-parse HEAD) --build-arg CREATED=$(git show -s --format=%cI)
ARG REVISION= CREATED=
LABEL org.opencontainers.image.title="pg-change-relay" \
      org.opencontainers.image.description="A change-feed relay: every committed change of a Postgres table, pushed to WebSocket subscribers" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.authors="The pg-change-relay contributors" \
      org.opencontainers.image.url="https://example.org/pg-change-relay" \
      org.opencontainers.image.source="https://example.org/pg-change-relay/source" \
      org.opencontainers.image.documentation="https://example.org/pg-change-relay/docs" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.revision="$REVISION"
