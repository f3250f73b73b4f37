#pragma once

#include <cstddef>
#include <string_view>

namespace moe {

// Characters to insert, delete or replace to get from one to the other (Levenshtein 1966): how near is a typing error?
size_t EditDistance(std::string_view a, std::string_view b);

}  // namespace moe
