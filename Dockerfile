# Two stages: the environment is built by hash from the lock, and copied without what built it.
FROM python:3.13-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
RUN python -m venv /opt/obol
COPY requirements.txt requirements-dev.txt ./
RUN /opt/obol/bin/pip install --require-hashes -r requirements.txt
# The build backend has an environment of its own; only the wheel leaves it.
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements-dev.txt
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY lua lua
COPY config config
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/obol/bin/pip install --no-deps --no-index /dist/*.whl

FROM python:3.13-slim

LABEL org.opencontainers.image.title="Obol" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --home-dir /var/lib/obol --create-home --shell /usr/sbin/nologin obol
COPY --from=build /opt/obol /opt/obol
ENV PATH=/opt/obol/bin:$PATH PYTHONUNBUFFERED=1 OBOL_HOST=0.0.0.0 OBOL_PORT=8080 OBOL_DATA_DIR=/var/lib/obol/data
USER obol
WORKDIR /var/lib/obol
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['OBOL_PORT'] + '/healthz', timeout=2)"]
ENTRYPOINT ["obol"]
CMD ["serve"]
