#pragma once
// One function per command, each in a file of its own; main.cc has the table. argv[0] is the command's name, its flags follow.
// The result is the exit code: 0 done, 1 failed, 2 wrong usage.

namespace moe {

int RunBench(int argc, char** argv);
int RunCompare(int argc, char** argv);
int RunEval(int argc, char** argv);
int RunGenerate(int argc, char** argv);
int RunInspect(int argc, char** argv);
int RunPlan(int argc, char** argv);
int RunProbe(int argc, char** argv);
int RunRoute(int argc, char** argv);
int RunSweep(int argc, char** argv);
int RunTrace(int argc, char** argv);
int RunTrain(int argc, char** argv);
int RunUpcycle(int argc, char** argv);

}  // namespace moe
