#!/bin/sh
# Makes an environment over the machine's own torch: sh setup.sh [FOLDER]; then FOLDER/python runs in it.
#   PYTHON   the Python that has torch and pip (default: python3)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
env=${1:-$here/env}
python=$(command -v "${PYTHON:-python3}")

rm -rf "$env"
mkdir -p "$env/site"
env=$(cd "$env" && pwd)
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
	--no-warn-script-location --target "$env/site" "$here"/wheels/*.whl
cp "$here/sitecustomize.py" "$env/site/"

# Ahead of the machine's own packages. A source tree named by MOSAIC_PHOTON_SRC goes before the bundle's wheel of it.
cat > "$env/python" <<EOF
#!/bin/sh
PYTHONPATH="\${MOSAIC_PHOTON_SRC:+\$MOSAIC_PHOTON_SRC:}$env/site" exec "$python" "\$@"
EOF
chmod +x "$env/python"
"$env/python" -c 'import torch, torchtitan; print("torch", torch.__version__, "CUDA", torch.version.cuda, torch.cuda.is_available())'
