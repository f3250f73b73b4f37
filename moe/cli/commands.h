#pragma once
// One function per command, each in a file of its own; main.cc has the table. argv[0] is the command's name, its flags follow.
// The result is the exit code: 0 done, 1 failed, 2 wrong usage.

namespace moe {

int RunTrace(int argc, char** argv);

}  // namespace moe
