"""Validate the YAML blocks of a Markdown file against Kubernetes' and SkyPilot's schemas, where both are installed."""

import re
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml
from sky.utils import schemas

KUBERNETES = "1.34"

for block in re.findall(r"```yaml\n(.*?)```", Path(sys.argv[1]).read_text(), re.DOTALL):
    for manifest in yaml.safe_load_all(block):
        if "apiVersion" in manifest:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            print("kubernetes", manifest["kind"])
        else:
            jsonschema.validate(manifest, schemas.get_task_schema())
            jsonschema.validate(manifest["resources"], schemas.get_resources_schema())
            print("skypilot", manifest["name"])
