# The daemon in a container: built in one stage, run in another that has no build tools.

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY relay relay
COPY sql sql
RUN python -m venv /relay && /relay/bin/pip install --no-cache-dir .

FROM python:3.13-slim
COPY --from=build /relay /relay
ENV PATH=/relay/bin:$PATH PYTHONUNBUFFERED=1
# Any user but root; the daemon writes nothing to disk.
USER 65532:65532
EXPOSE 4001 4002
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "\
import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"HEALTH_PORT\") or 4001}/health')"]
# exec form: the daemon is process 1 and gets SIGTERM itself.
ENTRYPOINT ["relay"]
CMD ["serve"]
