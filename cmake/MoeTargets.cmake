# One library per folder of moe/, its dependencies read from moe/LAYERS, so that the page and the build cannot disagree.

if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  message(FATAL_ERROR "got a ${CMAKE_SYSTEM_PROCESSOR}, expected x86-64: the kernels for other processors are still to come")
endif()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(tl-expected REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)

add_library(moe_flags INTERFACE)
# Designated initialisers that name only what differs are house style, hence -Wno-missing-field-initializers.
target_compile_options(moe_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
  -Wno-missing-field-initializers -Werror)
target_compile_definitions(moe_flags INTERFACE $<$<CONFIG:Debug>:_GLIBCXX_ASSERTIONS>)  # bounds of vectors and spans
target_include_directories(moe_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(moe_flags INTERFACE Threads::Threads)
if(MOE_SANITIZE)
  target_compile_options(moe_flags INTERFACE -fsanitize=${MOE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(moe_flags INTERFACE -fsanitize=${MOE_SANITIZE})
endif()

# Chart.js as a C++ string, for reports that open without a network.
find_file(MOE_CHART_JS chart.min.js PATHS /usr/share/javascript/chart.js REQUIRED)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${MOE_CHART_JS})
function(moe_embed_chart_js target)
  file(READ ${MOE_CHART_JS} script)
  set(source ${CMAKE_BINARY_DIR}/chart_js.cc)
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT "#include \"moe/planner/chart_js.h\"
std::string_view moe::ChartJs() {
  return R\"chartjs(@script@)chartjs\";
}
")
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS -Wno-overlength-strings)
  target_sources(${target} PRIVATE ${source})
endfunction()

# External libraries that a folder uses.
set(MOE_EXTERNAL_base fmt::fmt tl::expected)
set(MOE_EXTERNAL_costs nlohmann_json::nlohmann_json)
set(MOE_EXTERNAL_files nlohmann_json::nlohmann_json PkgConfig::PCRE2 PkgConfig::UTF8PROC PkgConfig::XXHASH)
set(MOE_EXTERNAL_model nlohmann_json::nlohmann_json)
set(MOE_EXTERNAL_train nlohmann_json::nlohmann_json PkgConfig::XXHASH)
set(MOE_EXTERNAL_planner nlohmann_json::nlohmann_json)
set(MOE_EXTERNAL_cli nlohmann_json::nlohmann_json)

# Only these files are compiled for an instruction set beyond the base line; kernels/cpu/dispatch.cc picks one at run time.
set(MOE_ISA_FLAGS_scalar "")
set(MOE_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(MOE_ISA_FLAGS_avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
set(MOE_ISA_FLAGS_avx512bf16 ${MOE_ISA_FLAGS_avx512} -mavx512bf16 -mavx512vnni)

function(moe_libraries_from_layers layers_file)
  file(STRINGS ${layers_file} lines)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${layers_file})
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "^([a-z]+):(.*)$")
      continue()
    endif()
    set(folder ${CMAKE_MATCH_1})
    string(STRIP "${CMAKE_MATCH_2}" dependencies)
    string(REGEX REPLACE " +" ";" dependencies "${dependencies}")
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/moe/${folder}/*.cc)
    list(FILTER sources EXCLUDE REGEX "moe/cli/main.cc$")
    if(NOT sources)
      add_library(moe_${folder} INTERFACE)
      set(scope INTERFACE)
    else()
      add_library(moe_${folder} STATIC ${sources})
      set(scope PUBLIC)
    endif()
    target_link_libraries(moe_${folder} ${scope} moe_flags ${MOE_EXTERNAL_${folder}})
    foreach(dependency IN LISTS dependencies)
      target_link_libraries(moe_${folder} ${scope} moe_${dependency})
    endforeach()
  endforeach()
  moe_embed_chart_js(moe_planner)
  foreach(isa scalar avx2 avx512 avx512bf16)
    set_source_files_properties(${CMAKE_SOURCE_DIR}/moe/kernels/cpu/isa/${isa}.cc PROPERTIES COMPILE_OPTIONS
      "-O3;-ffp-contract=fast;-fno-math-errno;-fno-trapping-math;-Wno-psabi;${MOE_ISA_FLAGS_${isa}}")
  endforeach()
  set_source_files_properties(${CMAKE_SOURCE_DIR}/moe/base/version.cc PROPERTIES COMPILE_DEFINITIONS
    MOE_VERSION="${PROJECT_VERSION}")
endfunction()

# One test binary per folder of tests/; files that end in _slow_test.cc make a second one, labelled slow.
function(moe_test folder)
  foreach(kind fast slow)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*_test.cc)
    if(kind STREQUAL slow)
      list(FILTER sources INCLUDE REGEX "_slow_test.cc$")
      set(name ${folder}_slow_test)
    else()
      list(FILTER sources EXCLUDE REGEX "_slow_test.cc$")
      set(name ${folder}_test)
    endif()
    if(NOT sources)
      continue()
    endif()
    add_executable(${name} ${sources})
    target_link_libraries(${name} PRIVATE ${ARGN} moe_testing GTest::gtest_main)
    target_compile_definitions(${name} PRIVATE MOE_SOURCE_DIR="${CMAKE_SOURCE_DIR}" MOE_BINARY="$<TARGET_FILE:moe>")
    if("moe_cli" IN_LIST ARGN)
      add_dependencies(${name} moe)  # these run the program itself
    endif()
    if(kind STREQUAL slow)
      set(timeout_s 3600)
    else()
      set(timeout_s 300)
    endif()
    gtest_discover_tests(${name} TEST_PREFIX "${folder}/" NO_PRETTY_VALUES PROPERTIES LABELS ${kind} TIMEOUT ${timeout_s} DISCOVERY_TIMEOUT 60)
  endforeach()
endfunction()
