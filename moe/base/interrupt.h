#pragma once
// Ctrl-C asks long work to stop at the next safe point; for programs, not for libraries.

namespace moe {

// From now on the first SIGINT or SIGTERM only raises a flag; the second ends the program at once.
void InstallInterruptHandler();
bool InterruptRequested();

}  // namespace moe
