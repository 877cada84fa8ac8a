# One image for every role: docker run IMAGE scheduler|ps|worker|status ...
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY src src
COPY ps ps
COPY worker worker
COPY scheduler scheduler
RUN pip wheel --quiet --no-deps --wheel-dir /wheels .

FROM python:3.11-slim

# Where pip may look besides its index, to choose a CPU build of torch:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=URL .    or    --build-arg PIP_FIND_LINKS=URL
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL
ENV PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

RUN useradd --create-home --shell /usr/sbin/nologin paramserver
WORKDIR /app

# Dependencies in a layer of their own: it is built again only when they change.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['examples'], *p['optional-dependencies']['certs'], sep='\n')" > requirements.txt \
    && pip install --quiet -c constraints.txt -r requirements.txt

COPY --from=wheel /wheels /wheels
RUN pip install --quiet --no-deps /wheels/*.whl
COPY examples examples

USER paramserver
ENTRYPOINT ["paramserver"]
CMD ["--help"]
