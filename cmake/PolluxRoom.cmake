# One CMake target a room of service/, and the arrows between rooms as the build's own rule.
#
#   pollux_room(NAME blob SOURCES a.cpp b.cpp USES bdev reactor LIBS PkgConfig::ISAL TESTS a_test.cpp)
#
# USES: rooms whose headers the room's own headers include. PRIVATE_USES, PRIVATE_LIBS: what only its sources
# include; a room that uses this one does not see them.
#
# A room may use only rooms listed for it in POLLUX_ARROWS_<room>; anything else stops the configuration. A room sees the
# headers of the rooms it uses and of no other, because every room exports its own include directory and nothing wider.

set(POLLUX_ARROWS_base)
set(POLLUX_ARROWS_protocol)
set(POLLUX_ARROWS_metrics base)
set(POLLUX_ARROWS_reactor base)
set(POLLUX_ARROWS_bdev base reactor)
set(POLLUX_ARROWS_blob base reactor bdev)
set(POLLUX_ARROWS_volume base reactor bdev blob)
set(POLLUX_ARROWS_virtio base protocol)
set(POLLUX_ARROWS_scsi base reactor bdev)
set(POLLUX_ARROWS_vhost base protocol reactor bdev volume virtio scsi metrics)
set(POLLUX_ARROWS_control base reactor bdev volume vhost metrics)

add_library(pollux_flags INTERFACE)
target_compile_options(pollux_flags INTERFACE -Wall -Wextra -Werror $<$<CXX_COMPILER_ID:GNU>:-Wshadow=local> -Wno-missing-field-initializers -fno-omit-frame-pointer
                       -mcx16 -msse4.2)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # With optimisation on, coroutine frames of g++ 12 trip the first, and "text" + std::string the second (GCC 105651).
  target_compile_options(pollux_flags INTERFACE -Wno-maybe-uninitialized -Wno-restrict)
endif()
if(POLLUX_SANITIZE)
  # Thrift's own headers read a type's number off the wire into an enumeration before they look at it, also in what is
  # compiled of them here.
  target_compile_options(pollux_flags INTERFACE -fsanitize=${POLLUX_SANITIZE} -fno-sanitize=enum -fno-sanitize-recover=all)
  target_link_options(pollux_flags INTERFACE -fsanitize=${POLLUX_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    # What this puts before each function clang 14 cannot put before the parts of a coroutine.
    target_compile_options(pollux_flags INTERFACE -fno-sanitize=function)
  elseif(POLLUX_SANITIZE STREQUAL "thread")
    # Fences, which ThreadSanitizer does not follow, stand only between a ring's two sides, and those share atomic words.
    target_compile_options(pollux_flags INTERFACE -Wno-tsan)
  endif()
endif()
# Rooms whose coverage guides the fuzz targets: those that guests and front ends speak to. clang 14 cannot instrument coroutines
# ("Cannot represent a difference across sections"), of which these have none.
set(POLLUX_FUZZED_ROOMS virtio scsi vhost)

function(pollux_room)
  cmake_parse_arguments(R "" "NAME" "SOURCES;USES;PRIVATE_USES;LIBS;PRIVATE_LIBS;TESTS;TEST_LIBS" ${ARGN})
  foreach(used IN LISTS R_USES R_PRIVATE_USES)
    if(NOT used IN_LIST POLLUX_ARROWS_${R_NAME})
      message(FATAL_ERROR "room ${R_NAME} may not use room ${used}: see POLLUX_ARROWS_${R_NAME} in cmake/PolluxRoom.cmake")
    endif()
  endforeach()
  set(target pollux_${R_NAME})
  if(R_SOURCES)
    add_library(${target} STATIC ${R_SOURCES})
    set(public PUBLIC)
  else()
    # Headers alone.
    add_library(${target} INTERFACE)
    set(public INTERFACE)
  endif()
  add_library(pollux::${R_NAME} ALIAS ${target})

  # Headers are included as "blob/journal.h": the directory on the path holds links to the permitted rooms alone.
  set(view ${CMAKE_BINARY_DIR}/include/${R_NAME})
  file(MAKE_DIRECTORY ${view})
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/service/${R_NAME} ${view}/${R_NAME} SYMBOLIC)
  target_include_directories(${target} ${public} ${view})
  set(deps)
  foreach(used IN LISTS R_USES)
    list(APPEND deps pollux::${used})
  endforeach()
  set(private_deps)
  foreach(used IN LISTS R_PRIVATE_USES)
    list(APPEND private_deps pollux::${used})
  endforeach()
  # pollux_flags is not part of the interface, so that generated code can be compiled without it.
  target_link_libraries(${target} ${public} ${deps} ${R_LIBS})
  if(R_SOURCES)
    target_link_libraries(${target} PRIVATE ${private_deps} ${R_PRIVATE_LIBS} pollux_flags)
  endif()
  if(POLLUX_FUZZ AND R_NAME IN_LIST POLLUX_FUZZED_ROOMS)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()

  foreach(test IN LISTS R_TESTS)
    get_filename_component(stem ${test} NAME_WE)
    set(exe ${R_NAME}_${stem})
    add_executable(${exe} ${test})
    target_compile_definitions(${exe} PRIVATE BOOST_TEST_DYN_LINK BOOST_TEST_MODULE=${exe})
    target_link_libraries(${exe} PRIVATE ${target} ${private_deps} ${R_TEST_LIBS} pollux_flags Boost::unit_test_framework)
    # A third less to compile; what is under test is optimised in full.
    target_compile_options(${exe} PRIVATE "$<$<CONFIG:RelWithDebInfo>:-O1;-g1>")
    add_test(NAME ${R_NAME}/${stem} COMMAND ${exe})
    set_tests_properties(${R_NAME}/${stem} PROPERTIES LABELS "unit;${R_NAME}" TIMEOUT 300)
  endforeach()
endfunction()
