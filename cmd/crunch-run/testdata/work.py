"""What a user's program does: reads inputs, starts children, writes many files.

Prints one line of JSON per output file: its name in hexadecimal, its SHA-256.
"""
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys

ODD = ["plain", "with space", "tab\there", "new\nline", "back\\slash", "col:on", "ümlaut-日本", ".hidden",
       "-dash", "quote'\"", "percent%41", "#hash", "trailing.", "*?[x]", "$(id)", "a" * 200]


def content(name, number):
    seed = hashlib.sha256(os.fsencode(name)).digest()
    return (seed * (number * 37 % 900))[: number * 101 % 20000]


def write(number):
    parts = ["d%d" % (number % 7), ODD[number % len(ODD)], "n%d" % (number % 3)][: number % 4]
    name = os.path.join(*parts, "%s-%d" % (ODD[number % len(ODD)], number))
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    data = content(name, number)
    with open(name, "wb") as f:
        f.write(data)
    return os.fsencode(name).hex(), hashlib.sha256(data).hexdigest()


def main():
    # The input, through FUSE: every file, with what sha256sum says of it.
    total = 0
    for directory, _, names in sorted(os.walk("/in/data")):
        for name in sorted(names):
            path = os.path.join(directory, name)
            want = subprocess.run(["sha256sum", "--zero", path], check=True, stdout=subprocess.PIPE).stdout[:64].decode()
            with open(path, "rb") as f:
                data = f.read()
            assert hashlib.sha256(data).hexdigest() == want, path
            total += len(data)
    print("read %d bytes" % total, file=sys.stderr)

    with multiprocessing.Pool(4) as pool:
        written = pool.map(write, range(1000))

    # A file of more than one Keep block, through a pipe of children.
    subprocess.run("yes 0123456789abcde | head -c 70000000 | tee big >/dev/null", shell=True, check=True)
    with open("big", "rb") as f:
        written.append((b"big".hex(), hashlib.sha256(f.read()).hexdigest()))

    # A child that compiles a program and another that runs it.
    with open("/tmp/hello.c", "w") as f:
        f.write('#include <stdio.h>\nint main(void) { return puts("hello from C") < 0; }\n')
    subprocess.run(["gcc", "-o", "/tmp/hello", "/tmp/hello.c"], check=True)
    subprocess.run(["/tmp/hello"], check=True, stdout=sys.stderr)

    for name, digest in written:
        print(json.dumps([name, digest]))


main()
