#!/usr/bin/env python3
"""Compiles src/transfer/cuda/kernel.cu to kernel.ptx with NVRTC 12.1, without a GPU or a CUDA toolkit.

    scripts/compile_kernel.py            # writes kernel.ptx
    scripts/compile_kernel.py --check    # says whether kernel.ptx is what the source compiles to

NVRTC comes from the Python package nvidia-cuda-nvrtc-cu12 of version 12.1.105, which pip installs into the folder that --into names
(build/nvrtc) unless it is there. Its version is part of the result: PTX of 12.1 runs with every driver from 530 on. Exits with 77
where it cannot be had.
"""
import argparse
import ctypes
import os
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
HERE = os.path.join(ROOT, "src", "transfer", "cuda")
PACKAGE = "nvidia-cuda-nvrtc-cu12==12.1.105"
VERSION = (12, 1)
OPTIONS = [b"--gpu-architecture=compute_50", b"--std=c++14"]


def library(into):
    folder = os.path.join(into, "nvidia", "cuda_nvrtc", "lib")
    if not os.path.isdir(folder):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", into, PACKAGE]
        if subprocess.run(pip, stderr=subprocess.DEVNULL).returncode != 0:
            print("the kernel is not compiled: %s cannot be had" % PACKAGE)
            sys.exit(77)
    # NVRTC looks for its builtins by name.
    ctypes.CDLL(os.path.join(folder, "libnvrtc-builtins.so.%d.%d" % VERSION), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(os.path.join(folder, "libnvrtc.so.12"))


def compiled(source, nvrtc):

    def call(name, *arguments):
        code = getattr(nvrtc, name)(*arguments)
        if code != 0 and name != "nvrtcCompileProgram":
            sys.exit("%s failed with %d" % (name, code))
        return code

    major, minor = ctypes.c_int(), ctypes.c_int()
    call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    if (major.value, minor.value) != VERSION:
        sys.exit("NVRTC is %d.%d, not %d.%d" % (major.value, minor.value, *VERSION))
    program = ctypes.c_void_p()
    call("nvrtcCreateProgram", ctypes.byref(program), source, b"kernel.cu", 0, None, None)
    failed = call("nvrtcCompileProgram", program, len(OPTIONS), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS))
    what = "ProgramLog" if failed else "PTX"
    size = ctypes.c_size_t()
    call("nvrtcGet%sSize" % what, program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    call("nvrtcGet%s" % what, program, text)
    if failed:
        sys.exit(text.value.decode())
    return text.value


def main():
    arguments = argparse.ArgumentParser(description="Compiles the GPU kernel.")
    arguments.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments.add_argument("--into", default=os.path.join(ROOT, "build", "nvrtc"), help="where NVRTC is, or is installed")
    arguments = arguments.parse_args()
    with open(os.path.join(HERE, "kernel.cu"), "rb") as source:
        ptx = compiled(source.read(), library(arguments.into))
    path = os.path.join(HERE, "kernel.ptx")
    if not arguments.check:
        with open(path, "wb") as there:
            there.write(ptx)
        return
    with open(path, "rb") as there:
        if there.read() != ptx:
            sys.exit("kernel.ptx is not what kernel.cu compiles to: run scripts/compile_kernel.py")
    print("kernel.ptx is what kernel.cu compiles to")


main()
