#!/bin/sh
# chromium.sh FOLDER: prints the path of a headless Chromium. Takes $KVKEEP_CHROMIUM or an installed one, else puts one into
# FOLDER from the npm package @sparticuz/chromium, which needs node and npm but no root. Fails where neither is there.
set -eu
for name in ${KVKEEP_CHROMIUM:-} chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name"; then exit; fi
done
mkdir -p "$1"
folder=$(cd "$1" && pwd)
if [ ! -x "$folder/headless" ]; then
    if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
        echo "no Chromium: install one, or node and npm, or set KVKEEP_CHROMIUM to its path" >&2
        exit 1
    fi
    npm install --silent --no-fund --no-audit --prefix "$folder" @sparticuz/chromium@153.0.0 >&2
    # The package carries compressed files: the program, and the libraries and fonts that a bare system lacks.
    node - "$folder" <<'SCRIPT' >&2
const { execFileSync } = require("child_process");
const { readFileSync, writeFileSync } = require("fs");
const { brotliDecompressSync } = require("zlib");
const folder = process.argv[2];
const unpacked = name => brotliDecompressSync(readFileSync(`${folder}/node_modules/@sparticuz/chromium/bin/${name}.br`));
for (const name of ["al2023.tar", "swiftshader.tar", "fonts.tar"])
    execFileSync("tar", ["-xf", "-", "-C", folder], { input: unpacked(name) });
writeFileSync(`${folder}/chromium`, unpacked("chromium"), { mode: 0o755 });
writeFileSync(`${folder}/fonts.conf`, `<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>${folder}/fonts</dir><cachedir>${folder}/fonts-cache</cachedir></fontconfig>\n`);
SCRIPT
    # Written last: where it is, all of it is.
    cat >"$folder/headless.new" <<END
#!/bin/sh
export FONTCONFIG_PATH="$folder" LD_LIBRARY_PATH="$folder/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$folder/chromium" --single-process "\$@"
END
    chmod +x "$folder/headless.new"
    mv "$folder/headless.new" "$folder/headless"
fi
echo "$folder/headless"
