#pragma once
// The folder of a run: what it may be, and that nothing in it is written over.

#include <string>

#include "moe/base/result.h"

namespace moe {

std::string PathIn(const std::string& folder, const char* name);
bool Holds(const std::string& folder, const char* name);  // also a link to nothing

Status MakeFolder(const std::string& folder);

// Whether files could be made in `folder`, which need not be there yet; asked before long work.
Status CheckWritable(const std::string& folder);

// An error where `folder` holds anything that a new run writes. A run that is killed before its first checkpoint leaves an
// empty metrics.jsonl, which is nothing.
Status CheckNothingTaken(const std::string& folder);

}  // namespace moe
